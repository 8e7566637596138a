"""A step's completions as dense token batches, with little padding.

In: pairs and the states that other models gave for them. Out: micro-batches, each of which is one
forward or, where its rows differ much in length, several. What the rows of a forward begin with
(a chat template's opening) is read once for all of them, gradients included. Which rows share a
forward changes nothing but rounding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerheal.models.batch import WASTE, launch_cost, shared_prefix, token_budget
from steerheal.models.model import ChatModel
from steerheal.models.score import Pair, continuation_states, hidden_after_shared


@dataclass(frozen=True)
class Data:
    """All pairs of a heal, and what other models say at their completion positions."""

    pairs: Sequence[Pair]
    reference: Sequence[Float[Tensor, "_ D"]] | None
    """The reference's final hidden states; None without a barrier."""
    teacher: Sequence[Float[Tensor, "_ W"]] | None = None
    """What the teacher's logits are made of; None where tokens are fitted."""
    taught_by: ChatModel | None = None
    """What the teacher's door gave; the student's own head makes its logits when not given."""

    fitted: Sequence[Bool[Tensor, " _"]] | None = None
    """Which tokens take part in the fit; all where there is no mask."""
    advantages: Sequence[float] | None = None
    """What each completion's fit is multiplied by; none where they count alike."""

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens that a forward reads per pair: the last one predicts nothing that is asked for."""
        return [len(prefix) + len(rest) - 1 for prefix, rest in self.pairs]

    def by_target(self, rows: Sequence[int], device: torch.device) -> Float[Tensor, " N"] | None:
        """The advantages of these completions at each of their targets."""
        if self.advantages is None:
            return None
        each = [self.advantages[i] for i in rows for _ in self.pairs[i][1]]
        return torch.tensor(each, device=device)


@dataclass(frozen=True)
class Part:
    """Rows of one forward, and where their completion positions are."""

    rows: list[list[int]]
    opening: int
    """Tokens that the rows share, read once."""
    row: Int[Tensor, " N"]
    column: Int[Tensor, " N"]

    @property
    def used(self) -> int:
        """Positions that a pass over it reads and needs."""
        return self.opening + sum(len(row) - self.opening for row in self.rows)

    @property
    def read(self) -> int:
        """Positions that a pass over it reads, padding included."""
        width = max(map(len, self.rows)) - self.opening
        return self.opening + len(self.rows) * width

    def states(self, chat: ChatModel) -> Float[Tensor, "N D"]:
        """The model's final hidden states at the completion positions."""
        hidden, skipped = hidden_after_shared(chat, self.rows, self.opening)
        return hidden[self.row, self.column - skipped]


@dataclass(frozen=True)
class Micro:
    """Rows whose graph is in memory at once: targets, and the other models' states there."""

    parts: list[Part]
    targets: Int[Tensor, " N"]
    reference: Float[Tensor, "N D"] | None
    teacher: Float[Tensor, "N W"] | None
    fitted: Bool[Tensor, " N"] | None = None
    """Which targets take part in the fit; all where there is no mask."""
    rows: Sequence[int] = ()
    """Places of its completions among all, in order."""
    lengths: Sequence[int] = ()
    """Targets of each."""
    advantages: Float[Tensor, " N"] | None = None
    """What the fit of every target is multiplied by; none where they count alike."""

    @property
    def fits(self) -> int:
        """How many targets take part in the fit."""
        return len(self.targets) if self.fitted is None else int(self.fitted.sum())

    @property
    def used(self) -> int:
        """Positions that a pass over it reads and needs."""
        return sum(part.used for part in self.parts)

    @property
    def read(self) -> int:
        """Positions that a pass over it reads, padding included."""
        return sum(part.read for part in self.parts)

    def states(self, chat: ChatModel) -> Float[Tensor, "N D"]:
        """The model's final hidden states at the completion positions."""
        return torch.cat([part.states(chat) for part in self.parts])


def grouped(lengths: Sequence[int], budget: int | None = None, launch: int = 0) -> list[int]:
    """Sizes of the fewest consecutive groups with at most `WASTE` of padding, or `launch` tokens.

    A group is as wide as its longest row. Of several ways with the same number of groups the one
    with the least padding is taken.

    Args:
        lengths: Rising.
        budget: Most positions in a group, unless it is a single row; no limit when not given.
        launch: What another group costs, in positions.
    """
    count = len(lengths)
    # best[i]: positions that the first i rows take in so many groups, and those groups' sizes.
    best: list[tuple[float, list[int]]] = [(0, [])] + [(math.inf, [])] * count
    for _ in range(count):
        step: list[tuple[float, list[int]]] = [(math.inf, [])] * (count + 1)
        for end in range(1, count + 1):
            width = lengths[end - 1]
            for size in range(1, end + 1):
                if budget is not None and size > 1 and size * width > budget:
                    break
                cost = best[end - size][0] + size * width
                if cost < step[end][0]:
                    step[end] = (cost, [*best[end - size][1], size])
        best = step
        whole = best[count][0]
        if whole < math.inf and whole - sum(lengths) <= max(launch, WASTE * whole):
            break
    return best[count][1]


def micro_batches(
    chat: ChatModel, data: Data, rows: Sequence[int], accumulate: int = 1
) -> list[Micro]:
    """A step's rows as micro-batches of about equal numbers of rows, neighbours in length."""
    ordered = sorted(rows, key=lambda i: (data.lengths[i], i))
    size = math.ceil(len(ordered) / accumulate)
    return [
        _micro(chat, data, ordered[start : start + size]) for start in range(0, len(ordered), size)
    ]


def _micro(chat: ChatModel, data: Data, rows: list[int]) -> Micro:
    pairs = [data.pairs[i] for i in rows]
    launch, opening = launch_cost(chat.device), _opening(chat, pairs)
    parts, start = [], 0
    for size in grouped([data.lengths[i] - opening for i in rows], launch=launch):
        parts.append(_part(chat, pairs[start : start + size]))
        start += size
    targets = [token for _, rest in pairs for token in rest]
    reference, teacher, fitted = (
        None if given is None else torch.cat([given[i] for i in rows]).to(chat.device)
        for given in (data.reference, data.teacher, data.fitted)
    )
    lengths = [len(rest) for _, rest in pairs]
    chosen = torch.tensor(targets, device=chat.device)
    pulls = data.by_target(rows, chat.device)
    return Micro(parts, chosen, reference, teacher, fitted, rows, lengths, pulls)


def _read(pairs: Sequence[Pair]) -> list[list[int]]:
    return [[*prefix, *rest][:-1] for prefix, rest in pairs]


def _opening(chat: ChatModel, pairs: Sequence[Pair]) -> int:
    """Tokens that can be read once for all: the state at a prompt's last token is asked for."""
    if chat.sharded:
        # An opening's gradient comes in by its keys and values, for which FSDP gathers no block.
        return 0
    limit = min(len(prefix) for prefix, _ in pairs) - 1
    return shared_prefix(_read(pairs), limit, launch_cost(chat.device))


def _part(chat: ChatModel, pairs: Sequence[Pair]) -> Part:
    rows = [i for i, (_, rest) in enumerate(pairs) for _ in rest]
    columns = [len(prefix) - 1 + k for prefix, rest in pairs for k in range(len(rest))]
    row, column = (torch.tensor(values, device=chat.device) for values in (rows, columns))
    return Part(_read(pairs), _opening(chat, pairs), row, column)


def states_by_length(
    chat: ChatModel, data: Data, rows: Sequence[int]
) -> tuple[list[int], Float[Tensor, "N D"]]:
    """The rows in rising length, and the model's states on their completions in that order."""
    ordered = sorted(rows, key=lambda i: (data.lengths[i], i))
    states, start = [], 0
    device = chat.device
    lengths = [data.lengths[i] for i in ordered]
    for size in grouped(lengths, token_budget(device), launch_cost(device)):
        chunk = ordered[start : start + size]
        states += continuation_states(chat, [data.pairs[i] for i in chunk])
        start += size
    return ordered, torch.cat(states)
