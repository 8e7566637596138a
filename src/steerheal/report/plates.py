"""Which figures the report holds, in order, with their captions and what they need."""

import math
from collections.abc import Callable
from typing import NamedTuple

from matplotlib.figure import Figure

from steerheal.records import RunRecord
from steerheal.report import figures
from steerheal.report.draw import states


class Plate(NamedTuple):
    """A figure of the report."""

    name: str
    """Name of its files."""
    title: str
    caption: str
    draw: Callable[[RunRecord], Figure]
    lacks: Callable[[RunRecord], str]
    """What is missing for it to be drawn; empty when nothing is."""


def no_state(record: RunRecord) -> str:
    """Said of figures of evaluated states."""
    return "" if states(record) else "no state was evaluated"


def no_heal(record: RunRecord) -> str:
    """Said of figures of the training."""
    return "" if figures.heals(record) else "no round was healed"


def no_budget(record: RunRecord) -> str:
    """Said of figures of the KL between rounds."""
    known = any(math.isfinite(row.kl_cumulative) for row in record.rounds)
    return "" if known else "no round has a measured KL"


PLATES = (
    Plate(
        "trajectory",
        "Trait against coherence",
        "Each round is steered (square), which gains trait and loses answer mass, and then healed "
        "(circle): healing works when the arrow points right and hardly down.",
        figures.trajectory,
        no_state,
    ),
    Plate(
        "coherence",
        "Coherence over rounds",
        "Every coherence instrument on its own scale, with the hook on (square) and after healing "
        "without it (circle).",
        figures.coherence,
        no_state,
    ),
    Plate(
        "foundations",
        "Care against Authority",
        "Where the vignettes are read to lie: right is more Authority, up is more Care.",
        figures.foundations,
        no_state,
    ),
    Plate(
        "trait",
        "Trait over rounds",
        "The trait by the log-odds of the persona's two poles, and by its axis foundation.",
        figures.trait,
        no_state,
    ),
    Plate(
        "heal",
        "The heal's course",
        "Training and held-out cross-entropy; with a barrier also the divergence from the "
        "reference with its limit τ, and what the barrier added to the loss.",
        figures.heal,
        no_heal,
    ),
    Plate(
        "kl",
        "KL budget",
        "KL spent so far against the budget at which steering without healing is published to "
        "break down, whatever its schedule.",
        figures.budget,
        no_budget,
    ),
)
