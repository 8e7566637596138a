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

from steerheal.models.hooks import adding
from steerheal.models.model import ChatModel
from steerheal.records import Completion
from steerheal.steer.calibrate import Door, DoseSearch, calibrate, probe

SPAN = (1 / 4, 16.0)
"""Lengths tried, in multiples of the other vector's: a random direction rarely costs more."""
TOLERANCE = 0.05
"""Relative difference between the two p95 that still counts as equal."""


@dataclass(frozen=True)
class EqualKl:
    """A random direction per block whose p95 at dose 1 is that of another vector at its dose."""

    directions: dict[int, Float[Tensor, " D"]] | None
    """Float32 on the CPU, by block index; None where no scale was found."""
    search: DoseSearch | None
    """Over multiples of the direction at the other vector's norms; None without a target."""
    target: float
    """p95 of the other vector at its dose, nats per token."""


def equal_kl(
    chat: ChatModel,
    like: Mapping[int, Float[Tensor, " D"]],
    dose: float,
    texts: Sequence[Completion],
    *,
    seed: int,
    door: Door | None = None,
) -> EqualKl:
    """A random direction on the same blocks, scaled to the same p95.

    Args:
        chat: The model in the state that is steered.
        like: Direction per block of the vector that it is compared with.
        dose: That vector's dose.
        texts: Completions that the model wrote unsteered.
        seed: Of the direction.
        door: How that vector steers; it adds its directions when none is given.
    """
    opened = door or (lambda: adding(chat, like, 0.0))
    target = probe(chat, opened, texts, [dose])[0].kl
    if not (math.isfinite(target) and target > 0):
        return EqualKl(None, None, target)
    drawn = random_like(like, seed=seed)
    found = calibrate(
        chat,
        lambda: adding(chat, drawn, 0.0),
        texts,
        target,
        span=(SPAN[0] * dose, SPAN[1] * dose),
        tolerance=TOLERANCE,
    )
    if found.outcome != "found":
        return EqualKl(None, found, target)
    scaled = {layer: vector * found.coefficient for layer, vector in drawn.items()}
    return EqualKl(scaled, found, target)


def random_like(
    like: Mapping[int, Float[Tensor, " D"]], *, seed: int
) -> dict[int, Float[Tensor, " D"]]:
    """A random direction per block with the norm of the one given there."""
    source = torch.Generator().manual_seed(seed)
    drawn = {layer: torch.randn(len(like[layer]), generator=source) for layer in sorted(like)}
    return {layer: v * (like[layer].float().norm() / v.norm()) for layer, v in drawn.items()}
