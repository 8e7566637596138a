"""A state: a model under some condition, as a frozen value with a name and a key.

    Plain      the model with adapters at gates, vectors at doses, and a system prompt
    Contrast   base + β·(plus − minus), logit by logit
    Plausible  the logits of one state, without the tokens that another finds implausible:
               v stays where p_by(v) ≥ ε·max p_by

A contrast is taken of final hidden states. The output head is affine, so that these give exactly
the contrast of the logits, its bias included; where a model caps its logits, the contrast is that
of the logits before the cap.

Source of the mask: contrastive decoding, Li et al. 2022, arXiv:2210.15097.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
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

MASKED = -1e30
"""The logit of an implausible token: its probability is 0, and 0·ln 0 stays 0."""


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
        """The largest coefficient on any of its vectors, by size; 0 without any."""
        doses = [dose for leaf in self.leaves for _, dose in leaf.vectors]
        return max(doses, key=abs, default=0.0)

    def steered(self, vector: SteeringVector, dose: float) -> "State":
        """The state under one more vector."""
        return self.mapped(lambda leaf: replace(leaf, vectors=(*leaf.vectors, (vector, dose))))

    def at_dose(self, dose: float) -> "State":
        """The state with all its coefficients in proportion, the largest of them `dose`.

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


@dataclass(frozen=True, eq=False)
class Contrast(State):
    """base + β·(plus − minus): what sets two states apart, on top of a third."""

    base: State
    plus: State
    minus: State
    beta: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.beta):
            raise UserError(f"A contrast needs a finite β, not {self.beta:g}.")
        if max(part.widths for part in (self.base, self.plus, self.minus)) > 1:
            raise UserError(
                "A contrast is made of states without a mask: mask the contrast itself instead."
            )

    @property
    def leaves(self) -> tuple[Plain, ...]:
        """Those of all three."""
        return (*self.base.leaves, *self.plus.leaves, *self.minus.leaves)

    def mapped(self, change: Callable[[Plain], Plain]) -> "Contrast":
        """The contrast of what is changed in all three."""
        base, plus, minus = (part.mapped(change) for part in (self.base, self.plus, self.minus))
        return Contrast(base, plus, minus, self.beta)

    @property
    def widths(self) -> int:
        """One: a sum of hidden states is one."""
        return 1

    def combined(self, hidden: Iterator[Float[Tensor, "*N D"]]) -> Float[Tensor, "*N W"]:
        """h_base + β·(h_plus − h_minus), in float32."""
        base, plus, minus = (part.combined(hidden) for part in (self.base, self.plus, self.minus))
        return (base.float() + self.beta * (plus.float() - minus.float())).to(base.dtype)

    def logits(self, states: Float[Tensor, "*N W"], head: Logits) -> Float[Tensor, "*N V"]:
        """Those of the combined hidden state."""
        return head(states)

    @property
    def formula(self) -> tuple[object, ...]:
        """β and how the three are made."""
        return ("contrast", self.beta, self.base.formula, self.plus.formula, self.minus.formula)

    @property
    def name(self) -> str:
        """The formula in words."""
        return f"({self.base.name}) + {self.beta:g}·[({self.plus.name}) − ({self.minus.name})]"


@dataclass(frozen=True, eq=False)
class Plausible(State):
    """A state that only says what another finds plausible."""

    of: State
    by: State
    epsilon: float
    """Share of the likeliest token's probability that a token needs."""

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1:
            raise UserError(f"A mask's ε is a share from 0 to 1, not {self.epsilon:g}.")

    @property
    def leaves(self) -> tuple[Plain, ...]:
        """Those of both."""
        return (*self.of.leaves, *self.by.leaves)

    def mapped(self, change: Callable[[Plain], Plain]) -> "Plausible":
        """The mask of what is changed in both."""
        return Plausible(self.of.mapped(change), self.by.mapped(change), self.epsilon)

    @property
    def widths(self) -> int:
        """Those of both: the judge's hidden state stands beside."""
        return self.of.widths + self.by.widths

    def combined(self, hidden: Iterator[Float[Tensor, "*N D"]]) -> Float[Tensor, "*N W"]:
        """Both side by side."""
        return torch.cat([self.of.combined(hidden), self.by.combined(hidden)], dim=-1)

    def logits(self, states: Float[Tensor, "*N W"], head: Logits) -> Float[Tensor, "*N V"]:
        """Those of the one, masked by the other."""
        size = states.shape[-1] // self.widths
        own, others = states.split([size * self.of.widths, size * self.by.widths], dim=-1)
        logits, judged = self.of.logits(own, head), self.by.logits(others, head)
        if not self.epsilon:
            return logits
        least = judged.amax(-1, keepdim=True) + math.log(self.epsilon)
        return logits.masked_fill(judged < least, MASKED)

    @property
    def formula(self) -> tuple[object, ...]:
        """ε and how both are made."""
        return ("plausible", self.epsilon, self.of.formula, self.by.formula)

    @property
    def name(self) -> str:
        """The mask in words."""
        return f"({self.of.name}) where ({self.by.name}) is plausible, ε {self.epsilon:g}"


def base() -> Plain:
    """The model as it is."""
    return Plain()


def contrast(base: State, plus: State, minus: State, beta: float) -> Contrast:
    """base + β·(plus − minus).

    Raises:
        UserError: β is not finite, or one of them is masked.
    """
    return Contrast(base, plus, minus, beta)


def plausible(of: State, by: State, epsilon: float) -> Plausible:
    """`of`, without the tokens less likely to `by` than ε times its likeliest.

    Raises:
        UserError: ε is no share.
    """
    return Plausible(of, by, epsilon)


@contextmanager
def entered(chat: ChatModel, states: Sequence[State]) -> Iterator[Opened]:
    """The model in several states at once: every row of a batch says which of them it is in.

    Raises:
        UserError: states of different formulas, or one that does not fit the model.
    """
    with opened(chat, states) as reader:
        yield reader
