"""One round's heal: trains a fresh adapter on the kept completions.

In: the student (history folded in), training pairs, the reference's states. Out: an `Adapter` and
its `HealLog`. The step minimises CE + λ·relu(agg(D) − τ) over all completion tokens of the step,
however many micro-batches it is split into.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from steerheal.config import HealSettings
from steerheal.heal.adapter import Adapter, trained, training
from steerheal.heal.barrier import PositionLosses, hinge_weights, position_losses
from steerheal.models.batch import right_padded
from steerheal.models.chat import prompt_ids
from steerheal.models.load import ChatModel
from steerheal.models.score import Pair, chosen_logprobs, continuation_states
from steerheal.records import Completion, HealLog, HealStep


class Healed(NamedTuple):
    """A trained adapter and how the training went."""

    adapter: Adapter
    log: HealLog


class Batch(NamedTuple):
    """Some pairs of a step: where their completion positions are, and the reference there."""

    ids: Int[Tensor, "B T"]
    row: Int[Tensor, " N"]
    column: Int[Tensor, " N"]
    targets: Int[Tensor, " N"]
    reference: Float[Tensor, "N D"] | None


def training_pairs(chat: ChatModel, kept: Sequence[Completion]) -> list[Pair]:
    """Prompt and completion token ids; the prompt is only context, no token of it is trained."""
    return [(prompt_ids(chat, item.prompt), list(item.tokens)) for item in kept]


def heal_student(
    chat: ChatModel,
    pairs: Sequence[Pair],
    reference: Sequence[Float[Tensor, "_ D"]],
    settings: HealSettings,
    *,
    round_number: int = 0,
    seed: int = 0,
    progress: Callable[[HealStep, int], None] = lambda _step, _of: None,
) -> Healed:
    """A fresh adapter trained on the pairs.

    Args:
        chat: The student: the model with its history folded in.
        pairs: Prompts and kept completions, token ids.
        reference: The reference's final hidden states on each pair's completion positions.
        settings: Barrier, adapter and optimiser.
        round_number: From 0; λ in this round is λ·(1+r)^power.
        seed: Of the adapter's start, the split and the order.
        progress: Called after every step with it and the number of steps.
    """
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()
    held = order[: int(settings.held_out * len(pairs))]
    train = order[len(held) :]
    lam = settings.lam * (1 + round_number) ** settings.lam_power
    steps: list[HealStep] = []
    held_ce = [_held_out(chat, [pairs[i] for i in held])]
    reason = ""
    with training(chat, settings, seed=seed) as model:
        loop = _Optimiser([p for p in model.parameters() if p.requires_grad], settings, len(train))
        for epoch in range(settings.epochs):
            for rows in _epoch(train, settings.rows, seed + 1 + epoch):
                batches = _split(chat, pairs, reference, rows, settings)
                step = _step(chat, batches, settings, lam=lam, loop=loop, place=(len(steps), epoch))
                steps.append(step)
                progress(step, loop.total)
                if not math.isfinite(step.ce) or not math.isfinite(step.gradient):
                    reason = f"step {step.step + 1} of {loop.total} was not finite"
                    break
            if reason:
                break
            held_ce.append(_held_out(chat, [pairs[i] for i in held]))
        adapter = trained(model, settings)
    log = HealLog(
        steps=tuple(steps),
        held_out=tuple(held_ce),
        trained_on=len(train),
        held_out_completions=len(held),
        lam=lam,
        outcome="rejected" if reason else "trained",
        reason=reason,
    )
    return Healed(adapter, log)


class _Optimiser:
    """AdamW with linear warm-up and a cosine to 0, gradients clipped."""

    def __init__(
        self, parameters: list[torch.nn.Parameter], settings: HealSettings, rows: int
    ) -> None:
        self.parameters, self._clip = parameters, settings.clip
        self.total = settings.epochs * math.ceil(rows / settings.rows)
        self.adam = torch.optim.AdamW(
            parameters,
            lr=settings.lr,
            betas=(0.9, settings.beta2),
            weight_decay=settings.weight_decay,
        )
        # The library's schedule starts and ends at 0; these are the steps strictly between.
        self._schedule = get_cosine_schedule_with_warmup(
            self.adam, math.ceil(settings.warmup * self.total), self.total + 1
        )
        self.adam.step()  # no gradients yet: changes nothing, and lets the schedule move
        self._schedule.step()

    @property
    def lr(self) -> float:
        return float(self._schedule.get_last_lr()[0])

    def apply(self) -> float:
        """One update; the gradient's norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self._clip).item()
        if math.isfinite(norm):
            self.adam.step()
            self._schedule.step()
        self.adam.zero_grad(set_to_none=True)
        return norm


def _epoch(train: Sequence[int], rows: int, seed: int) -> list[list[int]]:
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
    shuffled = [train[i] for i in order]
    return [shuffled[i : i + rows] for i in range(0, len(shuffled), rows)]


def _split(
    chat: ChatModel,
    pairs: Sequence[Pair],
    reference: Sequence[Tensor],
    rows: list[int],
    settings: HealSettings,
) -> list[Batch]:
    size = settings.rows // settings.accumulate
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    barrier = settings.barrier != "nll"
    return [
        _batch(chat, [pairs[i] for i in part], [reference[i] for i in part] if barrier else None)
        for part in parts
    ]


def _batch(chat: ChatModel, pairs: Sequence[Pair], reference: Sequence[Tensor] | None) -> Batch:
    ids = right_padded([[*prefix, *rest][:-1] for prefix, rest in pairs], 0, chat.device)
    rows = [i for i, (_, rest) in enumerate(pairs) for _ in rest]
    columns = [len(prefix) - 1 + k for prefix, rest in pairs for k in range(len(rest))]
    targets = [token for _, rest in pairs for token in rest]
    row, column, target = (
        torch.tensor(values, device=chat.device) for values in (rows, columns, targets)
    )
    states = None if reference is None else torch.cat(list(reference)).to(chat.device)
    return Batch(ids, row, column, target, states)


def _states(chat: ChatModel, batch: Batch) -> Float[Tensor, "N D"]:
    return chat.hidden(batch.ids, use_cache=False)[batch.row, batch.column]


def _losses(
    chat: ChatModel, batch: Batch, states: Float[Tensor, "N D"], settings: HealSettings
) -> PositionLosses:
    return position_losses(chat, states, batch.targets, batch.reference, settings.barrier)


def _step(
    chat: ChatModel,
    batches: list[Batch],
    settings: HealSettings,
    *,
    lam: float,
    loop: _Optimiser,
    place: tuple[int, int],
) -> HealStep:
    """One optimiser step over its micro-batches.

    The aggregate is over the whole step. With several micro-batches its derivative is known only
    once all of them are read, so that they are run forward twice.
    """
    count = sum(len(batch.targets) for batch in batches)
    only = len(batches) == 1
    divergences = [] if only else [_divergences(chat, batch, settings) for batch in batches]
    ce, operating, barrier = 0.0, math.nan, 0.0
    for index, batch in enumerate(batches):
        with torch.enable_grad():
            states = _states(chat, batch)
        losses = _losses(chat, batch, states, settings)
        everything = losses.divergence if only else torch.cat(divergences)
        operating, barrier, weights = hinge_weights(
            settings.aggregate, everything, lam, settings.tau
        )
        start = sum(len(other.targets) for other in batches[:index])
        mine = weights[start : start + len(batch.targets)]
        ce += losses.ce.sum().item() / count
        gradient = losses.ce_grad / count + mine[:, None] * losses.divergence_grad
        states.backward(gradient.to(states.dtype))
    lr = loop.lr
    return HealStep(
        step=place[0],
        epoch=place[1],
        ce=ce,
        divergence=math.nan if settings.barrier == "nll" else operating,
        barrier=barrier,
        lr=lr,
        gradient=loop.apply(),
        tokens=count,
    )


@torch.no_grad()
def _divergences(chat: ChatModel, batch: Batch, settings: HealSettings) -> Float[Tensor, " N"]:
    return _losses(chat, batch, _states(chat, batch), settings).divergence


@torch.no_grad()
def _held_out(chat: ChatModel, pairs: Sequence[Pair]) -> float:
    """Mean cross-entropy per completion token; NaN without held-out completions."""
    if not pairs:
        return math.nan
    states = torch.cat(continuation_states(chat, pairs))
    targets = torch.tensor([token for _, rest in pairs for token in rest], device=chat.device)
    return -chosen_logprobs(chat, states, targets).mean().item()
