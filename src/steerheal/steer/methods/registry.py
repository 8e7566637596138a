"""Every extraction method by name, with what a caller must know of it before it runs."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from steerheal.config import VectorSettings
from steerheal.errors import unknown
from steerheal.models.hooks import Kind
from steerheal.steer.methods import (
    ablation,
    contrastive_answers,
    cosine_gate,
    mean_difference,
    pca,
    random,
    s_space,
    single_pair,
)
from steerheal.steer.states import Source


@dataclass(frozen=True)
class Method:
    """How a direction per block is made, and how it acts."""

    directions: Callable[[Source], dict[int, Float[Tensor, " D"]]]
    foldable: bool
    """True: the steered model is a static one, with a bias on the blocks' outputs."""
    kind: Kind = "add"
    """What the direction does to a state."""
    contexts: int | None = None
    """Contexts it reads, where it does not read all."""
    answers: bool = False
    """Both poles answer first, whatever the position."""
    extra: Callable[[int], int] = lambda _: 0
    """Rows beyond the poles' own, by the number of contexts."""

    def rows(self, settings: VectorSettings, contexts: int) -> int:
        """Rows of which `progress` hears in an extraction: written and read, both poles."""
        used = min(contexts, self.contexts or contexts)
        passes = 2 if self.answers or settings.position != "tag" else 1
        return 2 * passes * used + self.extra(used)


METHODS: dict[str, Method] = {
    "mean_difference": Method(mean_difference.directions, mean_difference.FOLDABLE),
    "pca": Method(pca.directions, pca.FOLDABLE),
    "single_pair": Method(
        single_pair.directions, single_pair.FOLDABLE, contexts=single_pair.CONTEXTS
    ),
    "contrastive_answers": Method(
        contrastive_answers.directions, contrastive_answers.FOLDABLE, answers=True
    ),
    "s_space": Method(s_space.directions, s_space.FOLDABLE),
    "random": Method(random.directions, random.FOLDABLE, extra=random.extra),
    "ablation": Method(ablation.directions, ablation.FOLDABLE, ablation.KIND),
    "cosine_gate": Method(cosine_gate.directions, cosine_gate.FOLDABLE, cosine_gate.KIND),
}


def find(name: str) -> Method:
    """The method of that name.

    Raises:
        UserError: no such method.
    """
    if name not in METHODS:
        raise unknown("vector method", name, METHODS)
    return METHODS[name]
