"""A round's heal: from kept text and its teacher to an adapter that is alive, or why it is none."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from steerheal import prompts, streams
from steerheal.config import HealSettings, SamplingSettings
from steerheal.errors import UserError
from steerheal.heal.batches import Data
from steerheal.heal.checkpoint import Checkpoint
from steerheal.heal.group import Reward, written
from steerheal.heal.mask import fitted
from steerheal.heal.preference import opposed, rivals_of
from steerheal.heal.teacher import Taught, taught
from steerheal.heal.train import Healed, heal_student, training_pairs
from steerheal.models.generate import Draw, generate
from steerheal.models.model import ChatModel
from steerheal.models.score import Pair, continuation_states
from steerheal.records import Completion, GroupLog, HealLog, HealStep
from steerheal.state.adapter import Adapter
from steerheal.state.fold import ROUNDING, Gated, assert_alive, concatenated
from steerheal.state.values import State, base
from steerheal.streams import stream
from steerheal.tables import OBJECTIVES

PART = 500_009
"""Between the seeds of the adapters that are averaged."""
NOTHING_WRITTEN = (
    "The heal's own text has no answer with a token in it, so that there is nothing to train on: "
    "lower --dose.start, or train on the teacher's text (--heal.on-policy 0, --heal.objective sft)."
)
NOTHING_LEFT = "less what is subtracted nothing is left of the heal: both texts taught the same"
NOTHING_MOVED = "nothing was learned: what the student writes asks for no change of its weights"


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
    sampling: SamplingSettings | None = None,
    reward: Reward | None = None,
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
        sampling: How the student writes, on policy, or the teacher at the opposite dose.
        reward: What the student's answers are rewarded for; `group` needs it.
        checkpoint: Where a heal that is cut off is gone on with.
        progress: Called after every step with it and the number of steps.

    Raises:
        UserError: an objective without what it needs, or no text to train on.
    """
    if OBJECTIVES.find(settings.objective).rewarded != (reward is not None):
        raise UserError(f"objective {settings.objective}: give `reward` to group, to no other.")
    origin = {"prev": student, "base": base()}.get(settings.reference, good or base())
    how = sampling or SamplingSettings()
    recipe = Recipe(
        chat, student, teacher, origin, settings, how, reward, number, checkpoint, progress
    )
    if settings.on_policy:
        healed = recipe.on_policy(kept, seed)
    elif settings.subtracts_opposite:
        healed = recipe.less_opposite(kept, seed)
    else:
        healed = combined(recipe.several(student, kept, seed), less, settings)
    if healed.log.outcome != "trained":
        return healed
    healed = healed._replace(adapter=healed.adapter.trained_by(chat))
    with student.entered(chat):
        return _if_finite(chat, healed, training_pairs(chat, kept)[0], settings.lr)


@dataclass(frozen=True)
class Recipe:
    """What the adapters of a heal have in common, however many it trains."""

    chat: ChatModel
    student: State
    teacher: State
    origin: State
    """The reference."""
    settings: HealSettings
    sampling: SamplingSettings
    reward: Reward | None
    number: int
    checkpoint: Checkpoint | None
    progress: Callable[[HealStep, int], None]
    advantages: Sequence[float] | None = None
    """Of the text, where it is rewarded."""

    def several(
        self, student: State, kept: Sequence[Completion], seed: int, first: int = 0
    ) -> list[Healed]:
        """The adapters that are averaged; the last one is rejected where one was.

        Args:
            student: What they are trained on top of.
            kept: The text.
            seed: Of the first.
            first: Where their checkpoints begin.
        """
        chat, settings = self.chat, self.settings
        pairs, rivals, aim = training_pairs(chat, kept), None, OBJECTIVES.find(settings.objective)
        sampled = 0
        if aim.paired:
            others = opposed(chat, self.teacher, kept, self.sampling, seed)
            sampled += _tokens(others)
            there = [i for i, other in enumerate(others) if other.tokens]
            kept = [kept[i] for i in there]
            pairs = [pairs[i] for i in there] + training_pairs(chat, [others[i] for i in there])
        if not pairs:
            raise UserError(NOTHING_WRITTEN)
        reference, anchor, lesson = None, None, Taught([], chat)
        with self.origin.entered(chat) as reader:
            if settings.barred_fit:
                reference = continuation_states(reader, pairs)
            if settings.reads_unrelated:
                anchor = unrelated(reader, seed)
                sampled += sum(len(rest) for _, rest in anchor.pairs)
            if aim.paired:
                rivals = rivals_of(reader, pairs)
        if aim.taught:
            lesson = taught(chat, self.teacher, kept)
        tokens = None
        if settings.mask:
            with base().entered(chat) as reader:
                tokens = fitted(reader, pairs, settings, seed)
        parts = list[Healed]()
        with student.entered(chat):
            while len(parts) < settings.average:
                done = heal_student(
                    chat,
                    pairs,
                    reference,
                    settings,
                    teacher=lesson.states or None,
                    taught_by=lesson.reader,
                    anchor=anchor,
                    fitted=tokens,
                    rivals=rivals,
                    advantages=self.advantages,
                    round_number=self.number,
                    seed=seed + PART * len(parts),
                    checkpoint=self.checkpoint and self.checkpoint.part(first + len(parts)),
                    progress=self.progress,
                )
                parts.append(_with_sampled(done, 0 if parts else sampled))
                if done.log.outcome != "trained":
                    break
        return parts

    def less_opposite(self, kept: Sequence[Completion], seed: int) -> Healed:
        """The kept text's adapter less that of the opposite dose's text.

        Both have the same prompts, seeds, start and order; what one of them lacks the other leaves
        out.
        """
        others = opposed(self.chat, self.teacher, kept, self.sampling, None)
        there = [i for i, other in enumerate(others) if other.tokens]
        parts = self.several(self.student, [kept[i] for i in there], seed)
        if parts[-1].log.outcome != "trained":
            return parts[-1]
        first = self.settings.average
        less = combined(
            self.several(self.student, [others[i] for i in there], seed, first), None, self.settings
        )
        if less.log.outcome != "trained":
            return less
        adapter, log = combined(parts, less.adapter, self.settings)
        log = log.model_copy(update={"steps": log.steps + less.log.steps})
        return _with_sampled(Healed(adapter, log), _tokens(others) + less.log.sampled)

    def on_policy(self, kept: Sequence[Completion], seed: int) -> Healed:
        """Adapters on top of each other, each trained on what the student writes by then.

        It answers the kept text's prompts: each as often as it was kept, with the teacher read
        there at those doses, or each with a group of answers that are rewarded.
        """
        now, phases, groups = self.student, list[Healed](), list[GroupLog]()
        asked = list(dict.fromkeys(item.prompt for item in kept))
        for phase in range(self.settings.on_policy):
            draws_from = stream(seed, streams.ON_POLICY, phase) * 1_000_003
            recipe = self
            if self.reward is None:
                texts = self._answers(now, kept, draws_from)
            else:
                texts, pulls, log = written(
                    self.chat, now, asked, self.reward, self.settings,
                    sampling=self.sampling, draws_from=draws_from,
                )  # fmt: skip
                groups.append(log)
                recipe = replace(self, advantages=pulls)
            first = phase * self.settings.average
            parts = recipe.several(now, texts, seed + PART * first, first)
            healed = _with_sampled(combined(parts, None, self.settings), _tokens(texts))
            if healed.log.outcome != "trained":
                log = healed.log.model_copy(update={"groups": tuple(groups)})
                return healed._replace(log=log)
            phases.append(healed)
            now = now.folded(healed.adapter)
        whole = concatenated([Gated(item.adapter) for item in phases])
        log = _logged(phases, on_policy=len(phases), groups=tuple(groups))
        return Healed(whole, _unless_nothing(whole, log, NOTHING_MOVED))

    def _answers(
        self, student: State, kept: Sequence[Completion], draws_from: int
    ) -> list[Completion]:
        """What the student answers to the kept text's prompts, marked with the text's doses."""
        draws = [Draw(item.prompt, seed=draws_from + i) for i, item in enumerate(kept)]
        with student.entered(self.chat) as reader:
            said = generate(reader, draws, self.sampling)
        return [
            own.model_copy(update={"dose": item.dose, "doses": ()})
            for own, item in zip(said, kept, strict=True)
            if own.tokens
        ]


def combined(parts: Sequence[Healed], less: Adapter | None, settings: HealSettings) -> Healed:
    """One adapter of several: ΔW = (1/k)·ΣΔWᵢ − c·ΔW₀, their factors side by side.

    What the parts do by chance, and what any fine-tuning on a model's own text does, grows less.
    Of the opposite dose's ΔW₀ the whole is divided by 1 + c: with c = 1 it is ½[ΔW(+v) − ΔW(−v)].

    Args:
        parts: Trained from different seeds; a rejected one, which is the last, is the outcome.
        less: ΔW₀: trained in the same way on other text; None takes nothing away.
        settings: c is `subtract`, and whose text ΔW₀ is of.
    """
    if parts[-1].log.outcome != "trained" or (len(parts) == 1 and less is None):
        return parts[-1]
    size = 1 / (1 + settings.subtract) if less and settings.subtracts_opposite else 1.0
    whole = [Gated(part.adapter, size / len(parts)) for part in parts]
    whole += [Gated(less, -size * settings.subtract)] if less is not None else []
    adapter = concatenated(whole)
    log = _logged(
        parts,
        averaged=len(parts),
        subtracted=settings.subtract if less is not None else 0.0,
    )
    return Healed(adapter, _unless_nothing(adapter, log, NOTHING_LEFT))


def _unless_nothing(adapter: Adapter, log: HealLog, reason: str) -> HealLog:
    """The log, rejected for this reason where the adapter does nothing."""
    if any(not adapter.share(name) <= ROUNDING for name in adapter.pairs):
        return log
    return log.model_copy(update={"outcome": "rejected", "reason": reason})


def _logged(parts: Sequence[Healed], **said: object) -> HealLog:
    """The first part's log with the steps of all, one after another, and what all sampled."""
    steps = tuple(step for part in parts for step in part.log.steps)
    sampled = sum(part.log.sampled for part in parts)
    return parts[0].log.model_copy(update={"steps": steps, "sampled": sampled, **said})


def _with_sampled(healed: Healed, tokens: int) -> Healed:
    """The heal with so many more tokens that it sampled."""
    log = healed.log.model_copy(update={"sampled": healed.log.sampled + tokens})
    return healed._replace(log=log)


def _tokens(texts: Sequence[Completion]) -> int:
    """Tokens of some texts."""
    return sum(len(item.tokens) for item in texts)


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
    prefix, rest = pair
    if math.isfinite(assert_alive(chat, healed.adapter, [*prefix, *rest]).change):
        return healed
    reason = (
        f"training diverged: the logits at gate 1 are not finite; learning rate {lr:g} is too high"
    )
    log = healed.log.model_copy(update={"outcome": "rejected", "reason": reason})
    return Healed(healed.adapter, log)
