"""Two measured states against each other, b minus a, and such comparisons over seeds.

Rows are paired by vignette and condition, by prompt, and by canary id, whatever their order, and
taken in the order of their keys. Changes are means of paired differences, except that of a
foundation's nats, ln(mean p_b / mean p_a). What one state did not measure is unknown, with the
reason; what the two measured on different units is refused.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from steerheal.errors import UserError
from steerheal.measure.pairs import FIX, Paired, matched_vignettes, paired
from steerheal.measure.readings import table
from steerheal.measure.readings.axis import clr
from steerheal.measure.stats import Statistic, crossed, log_ratio, mean
from steerheal.measure.summary import surgical
from steerheal.personas import Axis
from steerheal.records import FOUNDATIONS, UNREAD, Comparison, Reading, Record, Scores

Floats = NDArray[np.float64]
ONE_SEED = "one seed has no interval over seeds"


class SeedBand(Record):
    """The same comparison over several seeds."""

    a: str
    b: str
    instrument: str
    seeds: int
    readings: dict[str, Reading]
    """Mean over seeds with its 95 % t-interval, by the names that `Comparison.readings` gives; a
    reading that is the same at every seed keeps its own interval."""
    changes: tuple[str, ...]
    """Those of them that the table of readings holds."""
    surgical: int
    """Seeds whose comparison is surgical."""
    moved: tuple[str, ...]
    """Readings whose interval over seeds excludes 0."""


def compare(b: Scores, a: Scores, axis: Axis, *, base: Scores | None = None) -> Comparison:
    """State b minus state a, on the axis and off it.

    The base's answer mass is full coherence, and its means centre top-1 where the instrument needs
    it; a stands in for it when it is not given.

    Raises:
        UserError: other units, a unit twice, or another instrument.
    """
    origin = base or a
    acts = _acts(b, a, origin)
    nats = {name: _delta_nats(acts, i) for i, name in enumerate(FOUNDATIONS)}
    found = Comparison(
        a=a.state,
        b=b.state,
        instrument=b.instrument,
        n=len(acts.b),
        delta_nats=nats,
        delta_clr={name: _delta_clr(acts, i) for i, name in enumerate(FOUNDATIONS)},
        changes=table.changes(b, a, origin, axis),
        heads=table.heads(b.instrument),
        surgical=surgical(nats, axis),
    )
    return found.model_copy(update={"moved": _moved(found.readings())})


def across_seeds(comparisons: Sequence[Comparison]) -> SeedBand:
    """Mean over seeds of every reading, with a t-interval over seeds.

    What the units do to all seeds alike is not in that interval; where it is all there is, since
    the seed changes nothing, the reading's own interval over units stands. A reading that some seed
    does not have is unknown: a mean over the others would be of a choice.

    Raises:
        UserError: no comparisons, or comparisons of different states or instruments.
    """
    kinds = sorted({f"{item.b} − {item.a} by {item.instrument}" for item in comparisons})
    if len(kinds) != 1:
        raise UserError(
            f"Seeds must hold the same comparison; given: {', '.join(kinds) or 'none'}."
        )
    first, flat = comparisons[0], [item.readings() for item in comparisons]
    names = dict.fromkeys(name for seed in flat for name in seed)
    bands = {name: over_seeds([seed.get(name, UNREAD) for seed in flat]) for name in names}
    return SeedBand(
        a=first.a,
        b=first.b,
        instrument=first.instrument,
        seeds=len(comparisons),
        readings=bands,
        changes=tuple(dict.fromkeys(name for item in comparisons for name in item.changes)),
        surgical=sum(item.surgical is True for item in comparisons),
        moved=_moved(bands),
    )


def combined(rows_by_seed: Sequence[Floats], statistic: Statistic | None = None) -> Reading:
    """One difference over seeds and units at once: mean over seeds of the statistic.

    Per seed one row per unit, shape [n, …], units in the same order; seeds and units both vary.

    Raises:
        UserError: seeds with different numbers of units.
    """
    sizes = [len(rows) for rows in rows_by_seed]
    if len(set(sizes)) > 1:
        raise UserError(f"Seeds have {sizes} units. Give every seed the same ones, in one order.")
    if len(sizes) == 1:
        return Reading.unknown(ONE_SEED)
    broken = sum(not np.isfinite(rows).all() for rows in rows_by_seed)
    if broken:
        return Reading.unknown(f"{broken} of {len(sizes)} seeds hold values that are not finite")
    return crossed(rows_by_seed, statistic)


def _acts(b: Scores, a: Scores, origin: Scores) -> Paired:
    names = sorted({state.instrument for state in (b, a, origin)})
    if len(names) > 1:
        raise UserError(
            f"The states were measured with different instruments: {' and '.join(names)}. {FIX}"
        )
    acts = paired(b, a, "vignettes")
    if not acts.missing and origin is not a:
        matched_vignettes(b.vignettes, origin.vignettes)
    return acts


def _delta_nats(acts: Paired, i: int) -> Reading:
    return acts.over(lambda one, other: (one.p[i], other.p[i]), log_ratio)


def _delta_clr(acts: Paired, i: int) -> Reading:
    return acts.over(lambda one, other: (clr(one.score) - clr(other.score))[i])


def _moved(readings: dict[str, Reading]) -> tuple[str, ...]:
    return tuple(name for name, reading in readings.items() if reading.moved)


def over_seeds(readings: Sequence[Reading]) -> Reading:
    """Mean of a reading over seeds; its own where it is the same at all, unknown where one is."""
    lost = [reading.reason for reading in readings if not math.isfinite(reading.value)]
    if lost:
        return Reading.unknown(f"unknown in {len(lost)} of {len(readings)} seeds: {lost[0]}")
    if len(readings) < 2:
        return Reading.unknown(ONE_SEED)
    values = np.array([reading.value for reading in readings])
    if not np.ptp(values):
        return readings[0]
    return mean(values)
