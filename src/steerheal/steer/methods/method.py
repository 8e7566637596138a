"""What an extraction method is, with what a caller must know of it before it runs."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from steerheal.config import VectorSettings
from steerheal.models.hooks import Kind
from steerheal.steer.states import Source


@dataclass(frozen=True)
class Method:
    """How a direction per block is made, and how it acts."""

    directions: Callable[[Source], dict[int, Float[Tensor, " D"]]]
    kind: Kind = "add"
    """What the direction does to a state."""
    contexts: int | None = None
    """Contexts it reads, where it does not read all."""
    answers: bool = False
    """Both poles answer first, whatever the position."""
    extra: Callable[[int], int] = lambda _: 0
    """Rows beyond the poles' own, by the number of contexts."""
    joint: bool = False
    """A block's direction depends on which others are steered with it."""

    def rows(self, settings: VectorSettings, contexts: int) -> int:
        """Rows of which `progress` hears in an extraction: written and read, both poles."""
        used = min(contexts, self.contexts or contexts)
        passes = 2 if self.answers or settings.position != "tag" else 1
        return 2 * passes * used + self.extra(used)
