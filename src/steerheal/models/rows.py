"""Rows of a batch that are in different states: what each of them has read, and what acts on it.

A state whose logits need k forwards has k parts. A row of such a state is k rows of the forward,
all first parts before all second ones; the parts may differ in length before the answer, and read
the same tokens from there on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Line:
    """A row of a batch: what each part of its state reads, and where the assistant begins."""

    parts: tuple[tuple[int, ...], ...]
    """Token ids; a single part stands for every part of the state."""
    begins: tuple[int, ...]
    """Tokens before the assistant's first, per part."""
    state: int = 0
    """Which of the entered states the row is in."""

    @staticmethod
    def of(ids: Sequence[int], begin: int | None = None, *, state: int = 0) -> "Line":
        """The same tokens in every part; the assistant begins after them, or after `begin`."""
        return Line((tuple(ids),), (len(ids) if begin is None else begin,), state)

    def then(self, tokens: Sequence[int]) -> "Line":
        """The line with more tokens, the same in every part."""
        return Line(tuple((*part, *tokens) for part in self.parts), self.begins, self.state)

    def without(self, count: int) -> "Line":
        """The line without its last tokens."""
        return Line(
            tuple(part[: len(part) - count] for part in self.parts), self.begins, self.state
        )

    def spread(self, parts: int) -> "Line":
        """The line with as many parts as its state has.

        Raises:
            AssertionError: it has another number of parts of its own.
        """
        if len(self.parts) == parts:
            return self
        assert len(self.parts) == 1, f"a line of {len(self.parts)} parts in a state of {parts}"
        return Line(self.parts * parts, self.begins * parts, self.state)

    def __len__(self) -> int:
        """Tokens of its longest part."""
        return max(map(len, self.parts))


def as_line(row: Sequence[int] | Line) -> Line:
    """A line; plain token ids are read by the first state, as something said by nobody yet."""
    return row if isinstance(row, Line) else Line.of(row)


@dataclass(frozen=True)
class Acting:
    """What acts on every row of a forward, parts included; on the CPU, in float64."""

    doses: Float[Tensor, "N V"]
    """Coefficient of every vector of the room."""
    gates: Float[Tensor, "N A"]
    """Gate of every adapter that is not folded into the weights."""
    since: Int[Tensor, " N"]
    """Position from which the vectors act."""

    def __len__(self) -> int:
        return len(self.since)

    def scaled(self, scales: Sequence[float]) -> "Acting":
        """The same with every row's doses multiplied."""
        factors = torch.tensor(list(scales), dtype=torch.float64)
        return Acting(self.doses * factors[:, None], self.gates, self.since)

    def select(self, rows: Int[Tensor, " K"]) -> "Acting":
        """What acts on these rows, which may repeat."""
        rows = rows.cpu()
        return Acting(self.doses[rows], self.gates[rows], self.since[rows])

    def distinct(self, groups: Sequence[int]) -> tuple[list[int], Int[Tensor, " N"]]:
        """A row of every kind that there is, and the kind of every row.

        Rows are of a kind where the same acts on them and their group is the same.
        """
        numbers = (torch.tensor(list(groups))[:, None], self.since[:, None])
        table = torch.cat([*(part.double() for part in numbers), self.doses, self.gates], dim=1)
        _, kinds = table.unique(dim=0, return_inverse=True)
        places = kinds.tolist()
        return [places.index(kind) for kind in range(max(places) + 1)], kinds
