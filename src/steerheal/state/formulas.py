"""States whose logits are made of several others'.

    Contrast   base + β·(plus − minus), logit by logit
    Plausible  the logits of one state, without the tokens that another finds implausible:
               v stays where p_by(v) ≥ ε·max p_by

A contrast is taken of final hidden states. The output head is affine, so that these give exactly
the contrast of the logits, its bias included; where a model caps its logits, the contrast is that
of the logits before the cap.

Source of the mask: contrastive decoding, Li et al. 2022, arXiv:2210.15097.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steerheal.errors import UserError
from steerheal.state.room import Logits
from steerheal.state.values import Plain, State

MASKED = -1e30
"""The logit of an implausible token: its probability is 0, and 0·ln 0 stays 0."""


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
