"""A control at equal divergence: a random direction that costs as much KL as a vector does.

What such a direction moves as well is no effect of the vector's direction: any push of its size
would do it. Norms would not do for the comparison: at equal norm a random direction costs less.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steerheal.models.model import ChatModel
from steerheal.records import Completion
from steerheal.state.values import State
from steerheal.state.vector import SteeringVector
from steerheal.steer.calibrate import DoseSearch, calibrate, probe

SPAN = (1 / 4, 16.0)
"""Lengths tried, in multiples of the other vector's: a random direction rarely costs more."""
TOLERANCE = 0.05
"""Relative difference between the two p95 that still counts as equal."""


@dataclass(frozen=True)
class EqualKl:
    """A random direction per block whose p95 at dose 1 is that of a steered state."""

    vector: SteeringVector | None
    """The direction; None where no scale was found."""
    search: DoseSearch | None
    """Over multiples of the direction at the other vector's norms; None without a target."""
    target: float
    """p95 of the steered state, nats per token."""


def equal_kl(
    chat: ChatModel,
    student: State,
    like: State,
    texts: Sequence[Completion],
    *,
    seed: int,
) -> EqualKl:
    """A random direction on the same blocks, scaled to the same p95.

    Args:
        chat: The model, in no state.
        student: What is steered.
        like: The same under the vector that the direction is compared with.
        texts: Completions that the student wrote.
        seed: Of the direction.
    """
    dose, norms = like.dose, _steering(like)
    target = probe(chat, like, texts, [dose])[0].kl
    if not (math.isfinite(target) and target > 0):
        return EqualKl(None, None, target)
    drawn = SteeringVector(random_like(norms, seed=seed))
    found = calibrate(
        chat,
        student.steered(drawn, 1.0),
        texts,
        target,
        span=(SPAN[0] * dose, SPAN[1] * dose),
        tolerance=TOLERANCE,
    )
    if found.outcome != "found":
        return EqualKl(None, found, target)
    return EqualKl(drawn * found.dose, found, target)


def _steering(state: State) -> Mapping[int, Float[Tensor, " D"]]:
    """Directions of the vector that a state is steered by last."""
    return next(leaf.vectors[-1][0].layers for leaf in state.leaves if leaf.vectors)


def random_like(
    like: Mapping[int, Float[Tensor, " D"]], *, seed: int
) -> dict[int, Float[Tensor, " D"]]:
    """A random direction per block with the norm of the one given there."""
    source = torch.Generator().manual_seed(seed)
    drawn = {layer: torch.randn(len(like[layer]), generator=source) for layer in sorted(like)}
    return {layer: v * (like[layer].float().norm() / v.norm()) for layer, v in drawn.items()}
