"""A round's heal: from kept text and its teacher to an adapter that is alive, or why it is none."""

import math
from collections.abc import Callable, Sequence

from steerheal import prompts, streams
from steerheal.config import HealSettings, SamplingSettings
from steerheal.heal.batches import Data
from steerheal.heal.checkpoint import Checkpoint
from steerheal.heal.mask import fitted
from steerheal.heal.teacher import Taught, taught
from steerheal.heal.train import Healed, heal_student, training_pairs
from steerheal.models.generate import Draw, generate
from steerheal.models.model import ChatModel
from steerheal.models.score import Pair, continuation_states
from steerheal.records import Completion, HealStep
from steerheal.state.fold import assert_alive
from steerheal.state.values import State, base
from steerheal.streams import stream
from steerheal.tables import OBJECTIVES


def heal(
    chat: ChatModel,
    student: State,
    teacher: State,
    kept: Sequence[Completion],
    settings: HealSettings,
    *,
    number: int,
    seed: int,
    good: State | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[HealStep, int], None] = lambda _step, _of: None,
) -> Healed:
    """The adapter and how it was trained.

    Args:
        chat: The model, in no state.
        student: What the adapter is trained on top of.
        teacher: Who wrote the text, at any dose.
        kept: The text.
        settings: Objective, barrier, adapter and optimiser.
        number: The round's, from 0.
        seed: Of the adapter's start, the split and the order.
        good: The last good student, where that is the reference; the base when not given.
        checkpoint: Where a heal that is cut off is gone on with.
        progress: Called after every step with it and the number of steps.
    """
    pairs = training_pairs(chat, kept)
    origin = {"prev": student, "base": base()}.get(settings.reference, good or base())
    reference, anchor, lesson = None, None, Taught([], chat)
    with origin.entered(chat) as reader:
        if settings.barred:
            reference = continuation_states(reader, pairs)
        if settings.anchor:
            anchor = unrelated(reader, seed)
    if OBJECTIVES.find(settings.objective).taught:
        lesson = taught(chat, teacher, kept)
    tokens = None
    if settings.mask:
        with base().entered(chat) as reader:
            tokens = fitted(reader, pairs, settings, seed)
    with student.entered(chat):
        healed = heal_student(
            chat,
            pairs,
            reference,
            settings,
            teacher=lesson.states or None,
            taught_by=lesson.reader,
            anchor=anchor,
            fitted=tokens,
            round_number=number,
            seed=seed,
            checkpoint=checkpoint,
            progress=progress,
        )
        healed = healed._replace(adapter=healed.adapter.trained_by(chat))
        return _if_finite(chat, healed, pairs[0], settings.lr)


def unrelated(reader: ChatModel, seed: int) -> Data:
    """The reference's answers to prompts that no persona is about, and its states on them."""
    asked = prompts.control_train()
    draws_from = stream(seed, streams.ANCHOR) * 1_000_003
    draws = [Draw(prompt, seed=draws_from + i) for i, prompt in enumerate(asked)]
    said = generate(reader, draws, SamplingSettings())
    pairs = training_pairs(reader, [item for item in said if item.tokens])
    return Data(pairs, continuation_states(reader, pairs))


def _if_finite(chat: ChatModel, healed: Healed, pair: Pair, lr: float) -> Healed:
    """The heal, rejected if its adapter breaks the model.

    Without held-out completions only this shows what the last update did.
    """
    if healed.log.outcome != "trained":
        return healed
    prefix, rest = pair
    if math.isfinite(assert_alive(chat, healed.adapter, [*prefix, *rest]).change):
        return healed
    reason = (
        f"training diverged: the logits at gate 1 are not finite; learning rate {lr:g} is too high"
    )
    log = healed.log.model_copy(update={"outcome": "rejected", "reason": reason})
    return Healed(healed.adapter, log)
