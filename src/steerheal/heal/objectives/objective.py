"""What an objective is: the fit per position and its gradient, and whose word it is held to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Chunk(NamedTuple):
    """The student on a few positions, and how a slope in its logits goes back to its states."""

    log_p: Float[Tensor, "N V"]
    p: Float[Tensor, "N V"]
    pulled_back: Callable[[Float[Tensor, "N V"]], Float[Tensor, "N D"]]


@dataclass(frozen=True)
class Objective:
    """A fit whose gradient is written out."""

    fit: Callable[[Chunk, Tensor], tuple[Float[Tensor, " N"], Float[Tensor, "N D"]]]
    """A chunk, which is left as it is, and its aim: target tokens, or the teacher's
    log-probabilities, which may be written over."""
    taught: bool = False
    """Its aim is the teacher, and not the targets."""
    paired: bool = False
    """Every completion is held against what the teacher writes at the opposite dose."""
    rewarded: bool = False
    """The student's own answers to a prompt are held against each other."""

    @property
    def controlled(self) -> bool:
        """Whether the kept text is what it learns, so that unsteered text is its control."""
        return not (self.taught or self.rewarded)
