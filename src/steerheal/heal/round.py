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
from steerheal.state.adapter import Adapter
from steerheal.state.fold import ROUNDING, Gated, assert_alive, concatenated
from steerheal.state.values import State, base
from steerheal.streams import stream
from steerheal.tables import OBJECTIVES

PART = 500_009
"""Between the seeds of the adapters that are averaged."""
NOTHING_LEFT = "less the unsteered control nothing is left of the heal: both learned the same"


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
    less: Adapter | None = None,
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
        less: The unsteered control's adapter, of which `settings.subtract` is taken away.
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
    parts = []
    with student.entered(chat):
        for part in range(settings.average):
            trained = heal_student(
                chat,
                pairs,
                reference,
                settings,
                teacher=lesson.states or None,
                taught_by=lesson.reader,
                anchor=anchor,
                fitted=tokens,
                round_number=number,
                seed=seed + PART * part,
                checkpoint=checkpoint and checkpoint.part(part),
                progress=progress,
            )
            parts.append(trained)
            if trained.log.outcome != "trained":
                return trained
        healed = combined(parts, less, settings)
        healed = healed._replace(adapter=healed.adapter.trained_by(chat))
        return _if_finite(chat, healed, pairs[0], settings.lr)


def combined(parts: Sequence[Healed], less: Adapter | None, settings: HealSettings) -> Healed:
    """One adapter of several: ΔW = (1/k)·ΣΔWᵢ − c·ΔW₀, their factors side by side.

    What the parts do by chance, and what any fine-tuning on a model's own text does, grows less.

    Args:
        parts: Trained from different seeds.
        less: ΔW₀: trained in the same way on text that is not steered; None takes nothing away.
        settings: c is `subtract`.
    """
    first = parts[0]
    if len(parts) == 1 and less is None:
        return first
    whole = [Gated(part.adapter, 1 / len(parts)) for part in parts]
    whole += [Gated(less, -settings.subtract)] if less is not None else []
    log = first.log.model_copy(
        update={
            "steps": tuple(step for part in parts for step in part.log.steps),
            "averaged": len(parts),
            "subtracted": settings.subtract if less is not None else 0.0,
        }
    )
    adapter = concatenated(whole)
    if all(adapter.share(name) <= ROUNDING for name in adapter.pairs):
        log = log.model_copy(update={"outcome": "rejected", "reason": NOTHING_LEFT})
    return Healed(adapter, log)


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
