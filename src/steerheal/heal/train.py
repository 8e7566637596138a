"""One round's heal: trains a fresh adapter on the kept completions.

In: the student (history folded in), training pairs, the reference's states and, to distil, the
teacher's. Out: an `Adapter` and its `HealLog`. The step minimises
fit + λ·relu(agg(D) − τ) + spectral·Σ‖ΔW‖₂ over all completion tokens of the step, however many
forwards it is split into, plus anchor·mean KL(reference‖student) over unrelated text. The rows of a
step are those of the seeded order.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steerheal.code import key_of
from steerheal.config import HealSettings
from steerheal.errors import UserError
from steerheal.heal.adapter import trained, training
from steerheal.heal.batches import Data
from steerheal.heal.checkpoint import Checkpoint, Place
from steerheal.heal.preference import Rivals
from steerheal.heal.trainer import Trainer
from steerheal.models.chat import prompt_ids
from steerheal.models.model import ChatModel
from steerheal.models.score import Pair
from steerheal.records import Completion, HealLog, HealStep
from steerheal.state.adapter import Adapter
from steerheal.tables import OBJECTIVES

DIVERGED = 0.5
"""Nats per token by which the training fit must have risen to count as diverged where nothing is
held out: a heal that learns lowers it by tenths of a nat, and steps of eight completions scatter by
about a quarter."""
UNLEARNED = 0.1
"""The same for the held-out fit, which is of the same completions before and after."""


class Healed(NamedTuple):
    """A trained adapter and how the training went."""

    adapter: Adapter
    log: HealLog


def training_pairs(chat: ChatModel, kept: Sequence[Completion]) -> list[Pair]:
    """Prompt and completion token ids; the prompt is only context, no token of it is trained."""
    return [(prompt_ids(chat, item.prompt), list(item.tokens)) for item in kept]


def heal_student(
    chat: ChatModel,
    pairs: Sequence[Pair],
    reference: Sequence[Float[Tensor, "_ D"]] | None,
    settings: HealSettings,
    *,
    teacher: Sequence[Float[Tensor, "_ W"]] | None = None,
    taught_by: ChatModel | None = None,
    anchor: Data | None = None,
    fitted: Sequence[Bool[Tensor, " _"]] | None = None,
    rivals: Rivals | None = None,
    advantages: Sequence[float] | None = None,
    round_number: int = 0,
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[HealStep, int], None] = lambda _step, _of: None,
) -> Healed:
    """A fresh adapter trained on the pairs.

    Args:
        chat: The student: the model with its history folded in.
        pairs: Prompts and kept completions, token ids.
        reference: The reference's final hidden states on each pair's completion positions; may be
            None without a barrier.
        settings: Objective, barrier, adapter and optimiser.
        teacher: What the teacher's logits there are made of; `distill` needs it.
        taught_by: What the teacher's door gave; the student's own head when not given.
        anchor: Unrelated text and the reference's final hidden states on it; needed where the
            settings' anchor is above 0, or their barrier is there.
        fitted: Which tokens of each completion take part in the fit; a mask needs it.
        rivals: Which of the pairs is preferred to which; `dpo` needs it, and trains on the former.
        advantages: How far each pair is pulled up or pushed down; `group` needs it.
        round_number: From 0; λ in this round is λ·(1+r)^power.
        seed: Of the adapter's start, the split and the order.
        checkpoint: Where the state is saved after every epoch, and where a heal that was cut off
            goes on from, to the same adapter bit for bit.
        progress: Called after every step with it and the number of steps.

    Raises:
        UserError: a barrier, an anchor, an objective or a mask without what it needs.
    """
    _refuse_without(settings, anchor, rivals, advantages)
    data = _data(pairs, reference, (teacher, taught_by), fitted, settings, advantages=advantages)
    parts = split(pairs[: len(rivals.of)] if rivals else pairs, settings.held_out, seed)
    lam = settings.lam * (1 + round_number) ** settings.lam_power
    aside = anchor.pairs if anchor is not None and settings.reads_unrelated else ()
    texts = [[(list(prefix), list(rest)) for prefix, rest in some] for some in (pairs, aside)]
    made_of = key_of("heal", settings, *texts, advantages, seed, round_number, chat.fingerprint)
    place = Place(made_of=made_of, epochs=0, steps=(), held_out=(), used=0, read=0)
    with training(chat, settings, seed=seed) as model:
        trainer = Trainer(chat, model, data, settings, lam=lam, rows=len(parts.train), seed=seed,
                          anchor=anchor, rivals=rivals)  # fmt: skip
        place = trainer.resumed(checkpoint, place) if checkpoint is not None else place
        batches = _epochs(parts.train, settings, seed)
        place, reason = _through(
            trainer, place, parts.held, batches, checkpoint=checkpoint, progress=progress
        )
        adapter = trained(model, settings)
    return Healed(adapter, _log(place, parts, settings, lam, reason, data=data))


def _refuse_without(
    settings: HealSettings,
    anchor: Data | None,
    rivals: Rivals | None,
    advantages: Sequence[float] | None,
) -> None:
    if settings.reads_unrelated and (anchor is None or anchor.reference is None):
        what = "An anchor" if settings.anchor else "A barrier on unrelated text"
        raise UserError(f"{what} needs unrelated text and the reference's states; give `anchor`.")
    aim = OBJECTIVES.find(settings.objective)
    if aim.paired != (rivals is not None):
        raise UserError(f"objective {settings.objective}: give `rivals` to dpo, and to no other.")
    if aim.rewarded != (advantages is not None):
        raise UserError(
            f"objective {settings.objective}: give `advantages` to group, and to no other."
        )


def _through(
    trainer: Trainer,
    place: Place,
    held: Sequence[int],
    batches: Sequence[list[list[int]]],
    *,
    checkpoint: Checkpoint | None,
    progress: Callable[[HealStep, int], None],
) -> tuple[Place, str]:
    """The epochs that are left; the place after them, and why they were broken off, if so."""
    if not place.held_out:
        place = place.model_copy(update={"held_out": (trainer.held_out(held),)})
    for epoch in range(place.epochs, len(batches)):
        place, reason = trainer.epoch(place, batches[epoch], progress)
        if reason:
            return place, reason
        place = place.model_copy(
            update={"epochs": epoch + 1, "held_out": (*place.held_out, trainer.held_out(held))}
        )
        if checkpoint is not None:
            checkpoint.write(place, trainer.state())
    return place, ""


def _log(
    place: Place, parts: "Parts", settings: HealSettings, lam: float, reason: str, *, data: Data
) -> HealLog:
    """How the training went; a reason it was broken off or is no use makes it rejected."""
    unread = "" if _masked(data.fitted, parts.held) < 1 else "all of their tokens are masked"
    falls = not OBJECTIVES.find(settings.objective).rewarded
    reason = reason or diverged(place.steps, place.held_out, settings.lr, falls=falls)
    return HealLog(
        steps=place.steps,
        held_out=place.held_out,
        trained_on=len(parts.train),
        held_out_completions=len(parts.held),
        held_out_reason=parts.reason or unread,
        lam=lam if settings.barred else math.nan,
        outcome="rejected" if reason else "trained",
        reason=reason,
        masked=_masked(data.fitted, parts.train),
        padding=1 - place.used / place.read if place.read else math.nan,
    )


def _masked(fitted: Sequence[Tensor] | None, rows: Sequence[int]) -> float:
    """Share of these rows' tokens that take no part in the fit."""
    if fitted is None or not rows:
        return 0.0
    return 1 - torch.cat([fitted[i] for i in rows]).float().mean().item()


class Parts(NamedTuple):
    """Places held out and trained on, and why none is held out."""

    held: list[int]
    train: list[int]
    reason: str


def split(pairs: Sequence[Pair], share: float, seed: int) -> Parts:
    """The completions, held out and trained on without a prompt in common.

    Whole prompts are held out, in seeded order, as long as their completions are within the share
    of all; where no prompt is that small, the smallest one is.
    """
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()
    places: dict[tuple[int, ...], list[int]] = {}
    for place in order:
        places.setdefault(tuple(pairs[place][0]), []).append(place)
    want, held, groups = int(share * len(pairs)), set[int](), list(places.values())
    for mine in groups:
        if len(held) + len(mine) <= want:
            held.update(mine)
    if want and not held and len(groups) > 1:
        held.update(min(groups, key=len))
    reason = ""
    if share and not held:
        few = f"{share:.0%} of {len(pairs)} completions is less than one"
        reason = few if not want else "all completions answer one prompt"
    inside = [place for place in order if place in held]
    return Parts(inside, [place for place in order if place not in held], reason)


def diverged(
    steps: Sequence[HealStep], held_out: Sequence[float], lr: float, *, falls: bool = True
) -> str:
    """Why a heal that ran to its end is no use: it unlearned. Empty when it did not.

    The training fit of the last quarter of the steps is held against the first step's, which is
    read before anything is learned. It must have risen, and so must that of held-out completions:
    if only theirs does, the heal is overfit. A single step has nothing to be held against. A fit
    that is no loss, which training need not make fall, has to be finite alone.
    """
    ends: dict[str, tuple[float, float, float]] = {}
    held = bool(steps) and bool(held_out) and math.isfinite(held_out[0])
    if len(steps) > 1:
        last = [step.ce for step in steps[-max(1, len(steps) // 4) :]]
        ends["CE"] = (steps[0].ce, math.fsum(last) / len(last), 0.0 if held else DIVERGED)
    if held:
        ends["held-out CE"] = (held_out[0], held_out[-1], UNLEARNED)
    broken = any(not math.isfinite(end) for _, end, _ in ends.values())
    rose = falls and all(end - start > limit for start, end, limit in ends.values())
    if not ends or not (broken or rose):
        return ""
    said = " and ".join(f"{name} {first:.2f} → {end:.2f}" for name, (first, end, _) in ends.items())
    return f"training diverged: {said} nats/token; learning rate {lr:g} is too high"


def _data(
    pairs: Sequence[Pair],
    reference: Sequence[Tensor] | None,
    taught: tuple[Sequence[Tensor] | None, ChatModel | None],
    fitted: Sequence[Tensor] | None,
    settings: HealSettings,
    *,
    advantages: Sequence[float] | None,
) -> Data:
    teacher, by = taught
    barrier = settings.barred_fit
    distill = OBJECTIVES.find(settings.objective).taught
    if barrier and reference is None:
        raise UserError(f"barrier {settings.barrier} needs the reference's states; give them.")
    if distill and teacher is None:
        raise UserError(
            f"objective {settings.objective} needs the teacher's states; give them as `teacher`."
        )
    if settings.mask and fitted is None:
        raise UserError("A mask needs the tokens that are fitted; give `fitted`.")
    return Data(
        pairs,
        reference if barrier else None,
        teacher if distill else None,
        by if distill else None,
        fitted if settings.mask else None,
        advantages,
    )


def _epochs(train: Sequence[int], settings: HealSettings, seed: int) -> list[list[list[int]]]:
    """The rows of every step of every epoch, each epoch in an order of its own."""
    found = []
    for epoch in range(settings.epochs):
        source = torch.Generator().manual_seed(seed + 1 + epoch)
        shuffled = [train[i] for i in torch.randperm(len(train), generator=source).tolist()]
        found.append(
            [shuffled[i : i + settings.rows] for i in range(0, len(shuffled), settings.rows)]
        )
    return found
