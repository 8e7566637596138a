"""Which figures the report holds, in order, with their captions and what they need."""

import math
from collections.abc import Callable
from typing import NamedTuple

from matplotlib.figure import Figure

from steerheal.records import RunRecord
from steerheal.report import captions, figures
from steerheal.report.draw import states


class Plate(NamedTuple):
    """A figure of the report."""

    name: str
    """Name of its files."""
    title: str
    seen: Callable[[RunRecord], str]
    """What is seen, from the record's numbers."""
    how: str
    """How it is read."""
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
        "What healing does to trait and coherence",
        captions.trajectory,
        "A numbered square is a round steered (the hook adds the vector), the circle of the same "
        "number that round healed, without a hook; the arrow joins them. Further up is more of the "
        "trait, further right more coherent: a good heal goes right and hardly down. Bars are "
        "95 % intervals.",
        figures.trajectory,
        no_state,
    ),
    Plate(
        "coherence",
        "Coherence, round by round",
        captions.coherence,
        "One panel per reading, each on its own scale. The arrow in its title is where coherent "
        "text lies.",
        figures.coherence,
        no_state,
    ),
    Plate(
        "foundations",
        "The target foundation against one that should not move",
        captions.foundations,
        "Every point is a state, by what the vignettes read of two foundations. Up or down is the "
        "persona's target; sideways is a foundation that it should leave alone.",
        figures.foundations,
        no_state,
    ),
    Plate(
        "trait",
        "Trait, round by round",
        captions.trait,
        "Left: how much likelier the persona's positive pole makes the answers than its negative "
        "one. Right: the moral foundation that the persona aims at. Bars are 95 % intervals.",
        figures.trait,
        no_state,
    ),
    Plate(
        "heal",
        "How the training went",
        captions.heal,
        "The loss on what is trained on (line) and on completions held out (diamonds); with a "
        "barrier (a KL penalty with a margin) also the divergence D from the reference with the "
        "margin τ, what the barrier, λ·relu(D − τ), added to the loss, and its pressure, "
        "‖∇barrier‖/‖∇CE‖.",
        figures.heal,
        no_heal,
    ),
    Plate(
        "kl",
        "How far the student is from the base",
        captions.budget,
        "At the dotted line published work saw steering without healing break down, on whatever "
        "schedule. The rounds' sum and the direct reading differ, since divergences do not add up.",
        figures.budget,
        no_budget,
    ),
)
