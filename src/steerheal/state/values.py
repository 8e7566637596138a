"""A state: a model under some condition, as a frozen value with a name and a key.

Here are what every state has and the plain ones; `formulas` makes states of several.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from steerheal.code import key_of
from steerheal.errors import UserError
from steerheal.models.model import ChatModel
from steerheal.state.adapter import Adapter
from steerheal.state.fold import Gated
from steerheal.state.part import Part
from steerheal.state.room import Logits, Opened, opened
from steerheal.state.vector import SteeringVector


class State(ABC):
    """What a model can be; equal where everything that makes it is."""

    @property
    @abstractmethod
    def leaves(self) -> "tuple[Plain, ...]":
        """The plain states that it is made of, in order; each needs a forward of its own."""

    @abstractmethod
    def mapped(self, change: "Callable[[Plain], Plain]") -> "State":
        """The state with every plain state in it changed."""

    @property
    @abstractmethod
    def widths(self) -> int:
        """Hidden states per position that its logits are made of."""

    @abstractmethod
    def combined(self, hidden: Iterator[Float[Tensor, "*N D"]]) -> Float[Tensor, "*N W"]:
        """What its logits are made of, from the final hidden states of its leaves."""

    @abstractmethod
    def logits(self, states: Float[Tensor, "*N W"], head: Logits) -> Float[Tensor, "*N V"]:
        """Its next-token logits."""

    @property
    @abstractmethod
    def formula(self) -> tuple[object, ...]:
        """How it is made of its leaves, whatever they are."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What people call it."""

    @cached_property
    def key(self) -> str:
        """Digest of everything that makes it, and of nothing else."""
        return key_of("state", self.formula, [leaf.made_of for leaf in self.leaves])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, State) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def dose(self) -> float:
        """The largest dose on any of its vectors, by size; 0 without any."""
        doses = [dose for leaf in self.leaves for _, dose in leaf.vectors]
        return max(doses, key=abs, default=0.0)

    def steered(self, vector: SteeringVector, dose: float) -> "State":
        """The state under one more vector."""
        return self.mapped(lambda leaf: replace(leaf, vectors=(*leaf.vectors, (vector, dose))))

    def at_dose(self, dose: float) -> "State":
        """The state with all its doses in proportion, the largest of them `dose`.

        Raises:
            UserError: it has no vector.
        """
        whole = self.dose
        if not whole:
            raise UserError(f"{self.name} has no dose to change: steer it by a vector first.")
        return self.mapped(lambda leaf: leaf.scaled(dose, whole))

    def folded(self, adapter: Adapter, gate: float = 1.0) -> "State":
        """The state with one more adapter; a negative gate takes it away."""
        return self.mapped(
            lambda leaf: replace(leaf, history=(*leaf.history, Gated(adapter, gate)))
        )

    def prompted(self, system: str, called: str = "") -> "State":
        """The state under a system prompt.

        Args:
            system: Its text.
            called: What people call the prompt; its beginning when not given.
        """
        return self.mapped(lambda leaf: replace(leaf, system=system, called=called))

    def acting_from(self, token: int | None) -> "State":
        """The state whose vectors act from the position that predicts this token of the answer on.

        Args:
            token: From 0; None lets them act at every position, the prompt's included.
        """
        return self.mapped(lambda leaf: replace(leaf, acts_from=token))

    @contextmanager
    def entered(self, chat: ChatModel) -> Iterator[Opened]:
        """The model in this state; everything is undone at the end.

        Raises:
            UserError: a vector or an adapter that does not fit the model.
        """
        with opened(chat, (self,)) as reader:
            yield reader


@dataclass(frozen=True, eq=False)
class Plain(Part, State):
    """A state that one forward gives."""

    @property
    def leaves(self) -> "tuple[Plain, ...]":
        """Itself."""
        return (self,)

    def mapped(self, change: "Callable[[Plain], Plain]") -> "Plain":
        """The change of itself."""
        return change(self)

    @property
    def widths(self) -> int:
        """One."""
        return 1

    def combined(self, hidden: Iterator[Float[Tensor, "*N D"]]) -> Float[Tensor, "*N W"]:
        """Its own."""
        return next(hidden)

    def logits(self, states: Float[Tensor, "*N W"], head: Logits) -> Float[Tensor, "*N V"]:
        """The model's."""
        return head(states)

    @property
    def formula(self) -> tuple[object, ...]:
        """Itself."""
        return ("plain",)


def base() -> Plain:
    """The model as it is."""
    return Plain()


@contextmanager
def entered(chat: ChatModel, states: Sequence[State]) -> Iterator[Opened]:
    """The model in several states at once: every row of a batch says which of them it is in.

    Raises:
        UserError: states of different formulas, or one that does not fit the model.
    """
    with opened(chat, states) as reader:
        yield reader
