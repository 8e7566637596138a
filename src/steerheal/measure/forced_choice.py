"""The forced-choice instrument: which of seven listed reasons the model names for an act.

A vignette is shown with the seven labels in several orders o. The model thinks greedily, is
interrupted, and its answer is opened up to the value:
    ℓ_o[f] = ln P(first token of label f | prompt_o, thinking, interruption, prefill)
    score = mean over o of ℓ_o     p = softmax(score)     p_ans_any = mean over o of Σ_f exp ℓ_o
ℓ is read from the whole vocabulary in float32. A rollout is one vignette in one order.

Source: tinymfv, github.com/wassname/tinymfv, as of June 2026.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steerheal.config import MeasureSettings
from steerheal.measure import finite
from steerheal.measure.instrument import Instrument, Progress, Read
from steerheal.measure.protocol import Protocol, load
from steerheal.measure.slot import Slot, slot_of
from steerheal.measure.vignettes import Vignette
from steerheal.models.asking import asked
from steerheal.models.batch import left_padded, shared_prefix, shrinking
from steerheal.models.cache import fitting, slides
from steerheal.models.decode import Decoding
from steerheal.models.model import ChatModel
from steerheal.models.rows import Line
from steerheal.models.score import chosen_logprobs
from steerheal.ranks import merged, share_of
from steerheal.records import FOUNDATIONS, Record, VignetteRow

CONFOUNDED = "two orders cannot tell a list position from the labels that stand there; use cyclic"
NOT_FINITE = "log-probabilities are missing or not finite"


class ForcedChoice(Record):
    """Every vignette's reading, and what happened on the way."""

    rows: list[VignetteRow]
    position_bias: tuple[float, ...]
    """What standing at each list position is worth, in nats above the mean of the positions."""
    position_reason: str = ""
    """Why the position bias is NaN."""
    rollouts: int
    """Vignettes times orders."""
    closed_early: int
    """Rollouts that would have ended their thinking or their turn before the budget did."""
    answered_early: int
    """Rollouts that wrote the answer's opening while thinking."""
    scored_naturally: int = 0
    """Rollouts read at an answer of their own: none, all are read at the forced slot."""


class _Rollouts(NamedTuple):
    """Readings, one row per rollout, on the CPU."""

    logs: Float[Tensor, "B 7"]
    """Log-probabilities of the labels, canonical order."""
    nll: Float[Tensor, " B"]
    """Of the prefill, nats per token."""
    closed: Bool[Tensor, " B"]
    answered: Bool[Tensor, " B"]


def read(
    chat: ChatModel,
    vignettes: Sequence[Vignette],
    protocol: Protocol,
    *,
    think: int = 128,
    orders: Literal["two", "cyclic"] = "two",
    rows: int = 128,
    progress: Callable[[int], None] = lambda _: None,
) -> ForcedChoice:
    """A row per vignette, in the order given.

    Args:
        chat: The model, or what a state's door gives.
        vignettes: What is asked.
        protocol: Wording, labels and markers.
        think: Tokens of thinking, exactly; 0 is none.
        orders: two, the list forwards and backwards; cyclic, every label once at every position.
        rows: Most rollouts read together; fewer where memory is short.
        progress: Called with the number of vignettes finished since the last call.

    Raises:
        UserError: labels that begin with the same token, a template without assistant turns, or
            logits that are not finite.
    """
    found = sweep(
        chat, vignettes, protocol, think=think, orders=orders, rows=rows, progress=progress
    )[0]
    finite.refuse_unread(chat, found.rows)
    return found


@torch.no_grad()
def sweep(
    chat: ChatModel,
    vignettes: Sequence[Vignette],
    protocol: Protocol,
    *,
    think: int = 128,
    orders: Literal["two", "cyclic"] = "two",
    rows: int = 128,
    progress: Callable[[int], None] = lambda _: None,
) -> list[ForcedChoice]:
    """One reading per entered state, all states and orders in the same batches.

    Args as `read`. What is not finite under a dose stays NaN.

    Raises:
        UserError: as `read`; logits that are not finite without a dose.
    """
    assert think >= 0 and rows >= 1, f"think {think}, rows {rows}"
    slot, lists = slot_of(chat, protocol, think), _lists(protocol, orders)
    each, count = len(lists), len(lists) * len(vignettes)
    prompts = [
        asked(chat, protocol.turn(vignette.text, labels), state=state, prefill=protocol.think_open)
        for state in range(chat.entered)
        for vignette in vignettes
        for labels in lists
    ]
    found = _empty(len(prompts))

    def work(batch: list[int]) -> None:
        read = _roll_out(chat, *_read_prompts(chat, prompts, batch, each), slot, protocol)
        for whole, part in zip(found, read, strict=True):
            whole[batch] = part
        progress(sum((i + 1) % each == 0 for i in batch))

    # The orders of a vignette stay together, so that what they share is read once.
    shares = share_of(range(len(prompts) // each))
    own = [each * share + k for share in shares for k in range(each)]
    order = sorted(own, key=lambda i: (len(prompts[i - i % each]), i))
    longest, more = max(map(len, prompts), default=0), think + len(slot.suffix) + len(slot.prefill)
    chat.refuse_longer(longest, written=more)
    rows = max(1, fitting(chat, rows * chat.parts, longest + more) // chat.parts)
    for start in range(0, len(order), rows):
        shrinking(order[start : start + rows], work)
    for i, one in merged({i: [whole[i] for whole in found] for i in own}).items():
        for whole, value in zip(found, one, strict=True):
            whole[i] = value
    read = [
        _collected(
            _Rollouts(*(part[state * count :][:count] for part in found)),
            vignettes,
            protocol,
            lists,
        )
        for state in range(chat.entered)
    ]
    finite.refuse_broken(chat, [one.rows for one in read])
    return read


def _lists(protocol: Protocol, orders: Literal["two", "cyclic"]) -> list[tuple[str, ...]]:
    labels = protocol.labels
    match orders:
        case "two":
            return [labels, labels[::-1]]
        case "cyclic":
            return [labels[k:] + labels[:k] for k in range(len(labels))]


def _empty(rollouts: int) -> _Rollouts:
    return _Rollouts(
        torch.full((rollouts, len(FOUNDATIONS)), torch.nan),
        torch.full((rollouts,), torch.nan),
        torch.zeros(rollouts, dtype=torch.bool),
        torch.zeros(rollouts, dtype=torch.bool),
    )


def _read_prompts(
    chat: ChatModel, prompts: Sequence[Line], batch: Sequence[int], each: int
) -> tuple[Decoding, Float[Tensor, "B W"]]:
    """Reads the prompts of a batch, what the orders of a vignette share once.

    Args:
        chat: The model, or what a state's door gives.
        prompts: Of every rollout; those of one vignette in one state stand together.
        batch: Which of them.
        each: Orders per vignette.

    Returns:
        The batch, and what the logits after every prompt are made of.
    """
    owners = [i - i % each for i in batch]
    stems = {i: _stem(prompts[i : i + each]) for i in owners}
    tails = [
        {
            part[len(start) :]
            for part, start in zip(prompts[i].parts, stems[owner].parts, strict=True)
        }
        for i, owner in zip(batch, owners, strict=True)
    ]
    short = all(map(all, (stem.parts for stem in stems.values())))
    alike = all(len(of) == 1 for of in tails)
    # Padding between the shared part and the rest would count towards a sliding window.
    if len(stems) == len(batch) or slides(chat) or not (short and alike):
        whole = Decoding(chat, [prompts[i] for i in batch])
        return whole, whole.start()[:, -1]
    read = Decoding(chat, list(stems.values()))
    read.start()
    read.select(torch.tensor([list(stems).index(i) for i in owners], device=chat.device))
    more = left_padded([tail for of in tails for tail in of], 0, chat.device)
    return read, read.on(more.ids, more.mask)[:, -1]


def _stem(orders: Sequence[Line]) -> Line:
    """What a vignette's orders begin with in common, part by part."""
    columns = zip(*(line.parts for line in orders), strict=True)
    return Line(
        tuple(of[0][: shared_prefix(of)] for of in columns), orders[0].begins, orders[0].state
    )


def _roll_out(
    chat: ChatModel, batch: Decoding, last: Float[Tensor, "B W"], slot: Slot, protocol: Protocol
) -> _Rollouts:
    """Thinks, is interrupted, and reads the slot; the last think token goes with the rest."""
    rows = len(batch)
    closed = torch.zeros(rows, dtype=torch.bool, device=chat.device)
    thoughts = torch.zeros(rows, 0, dtype=torch.long, device=chat.device)
    for _ in range(slot.think):
        if thoughts.shape[1]:
            last = batch.on(thoughts[:, -1:])[:, -1]
        logits = chat.logits(last)
        closed |= torch.isin(logits.argmax(-1), slot.suppressed)
        logits[:, slot.suppressed] = -torch.inf
        thoughts = torch.cat([thoughts, logits.argmax(-1)[:, None]], dim=1)
    prefill = torch.tensor(slot.prefill, device=chat.device).expand(rows, -1)
    suffix = torch.tensor(slot.suffix, device=chat.device).expand(rows, -1)
    read = batch.on(torch.cat([thoughts[:, -1:], suffix, prefill], dim=1))
    states = read[:, -len(slot.prefill) - 1 :]
    given = chosen_logprobs(chat, states[:, :-1].flatten(0, 1), prefill.flatten())
    logs = chat.logits(states[:, -1]).log_softmax(-1)[:, slot.answers]
    texts = cast(list[str], chat.tokenizer.batch_decode(thoughts))
    close = slot.close
    return _Rollouts(
        logs.cpu(),
        -given.view(rows, -1).mean(1).cpu(),
        closed.cpu() | torch.tensor([close != "" and close in text for text in texts]),
        torch.tensor([protocol.prefill in text for text in texts]),
    )


def _collected(
    found: _Rollouts,
    vignettes: Sequence[Vignette],
    protocol: Protocol,
    lists: Sequence[tuple[str, ...]],
) -> ForcedChoice:
    count = len(vignettes)
    logs = found.logs.view(count, len(lists), len(FOUNDATIONS))
    score = logs.mean(1)
    p, mass = score.softmax(-1), logs.exp().sum(-1).mean(1)
    nll = found.nll.view(count, len(lists)).mean(1)
    bias, reason = _position_bias(logs, protocol, lists)
    return ForcedChoice(
        rows=[
            VignetteRow(
                id=vignette.id,
                condition=vignette.condition,
                foundation=vignette.foundation,
                score=tuple(score[i].tolist()),
                p=tuple(p[i].tolist()),
                p_ans_any=mass[i].item(),
                nll_prefill=nll[i].item(),
            )
            for i, vignette in enumerate(vignettes)
        ],
        position_bias=tuple(bias.tolist()),
        position_reason=reason,
        rollouts=len(found.logs),
        closed_early=int(found.closed.sum()),
        answered_early=int(found.answered.sum()),
    )


def _position_bias(
    logs: Float[Tensor, "N O 7"], protocol: Protocol, lists: Sequence[tuple[str, ...]]
) -> tuple[Float[Tensor, " 7"], str]:
    """Mean log-probability at each list position above its rollout's mean, or why it is NaN."""
    unknown = torch.full((len(FOUNDATIONS),), torch.nan)
    if len(lists) < len(FOUNDATIONS):
        return unknown, CONFOUNDED
    if not len(logs) or not torch.isfinite(logs).all():
        return unknown, NOT_FINITE
    words = protocol.words()
    shown = torch.tensor([[words.index(label) for label in labels] for labels in lists])
    centred = logs - logs.mean(-1, keepdim=True)
    return centred.gather(2, shown.expand(len(logs), -1, -1)).mean((0, 1)), ""


def _sweep(
    chat: ChatModel, vignettes: Sequence[Vignette], settings: MeasureSettings, progress: Progress
) -> list[Read]:
    found = sweep(
        chat,
        vignettes,
        load(Path(settings.protocol) if settings.protocol else None),
        think=settings.think,
        orders=settings.orders,
        progress=progress,
    )
    cycled = settings.orders == "cyclic"
    return [Read(one.rows, one.position_bias if cycled else (), one.closed_early) for one in found]


INSTRUMENT = Instrument(_sweep, thinks=True)
