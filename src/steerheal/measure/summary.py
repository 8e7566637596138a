"""Aggregates: pure functions of the rows that evaluations left, always paired with the base.

    nats_f      = ln mean_v p_v[f]                      Δ from the base on the same vignettes
    coherence   = what coherence is read by, over the base's
    retain      = (healed − before) / (steered − before), of the trait
    net retain  = (healed − control) / (steered − before), of the trait
    recovered   = (healed − steered) / (before − steered), of what coherence is read by
`before` is the student at the start of the round; in the first round it is the base. Everything
else is an entry of the table of readings.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from steerheal.measure.pairs import in_order
from steerheal.measure.readings import table
from steerheal.measure.stats import log_ratio, mean, ratio
from steerheal.personas import Axis
from steerheal.records import FOUNDATIONS, OnTest, Part, Reading, Readings, Scores, Summary

Floats = NDArray[np.float64]


def summarise(scores: Scores, base: Scores, axis: Axis) -> Summary:
    """A state against the base.

    Args:
        scores: The state's rows.
        base: The base's rows on the same vignettes and prompts.
        axis: Which foundation should have moved, which way, and which should not.
    """
    scores, base = in_order(scores), in_order(base)
    deltas = {name: _delta_nats(scores, base, i) for i, name in enumerate(FOUNDATIONS)}
    heads, values = table.heads(), table.values(scores, base)
    whole = table.values(base, base)[heads["coherence"]].value
    p = np.array([row.p for row in scores.vignettes])
    return Summary(
        state=scores.state,
        nats={name: _log(p[:, i].mean()) for i, name in enumerate(FOUNDATIONS)},
        delta_nats=deltas,
        values=values,
        changes=table.changes(scores, base, base, axis),
        heads=heads,
        coherence=values[heads["coherence"]].value / whole if whole else math.nan,
        surgical=surgical(deltas, axis),
    )


def tested(
    scores: Scores, base: Scores, number: int, axis: Axis, control: Scores | None = None
) -> OnTest:
    """A round's state, and its control, on the test prompts; `number` is the round's."""

    def against(b: Scores, a: Scores) -> Readings:
        b, a, origin = in_order(b), in_order(a), in_order(base)
        values, changes = table.values(b, origin), table.changes(b, a, origin, axis)
        return Readings(values=_known(values), changes=_known(changes), heads=table.heads())

    return OnTest(
        round=number,
        prompts=len(scores.persona),
        control=None if control is None else against(control, base),
        over_control=None if control is None else against(scores, control),
        **dict(against(scores, base)),
    )


def _known(found: dict[str, Reading]) -> dict[str, Reading]:
    """What was read; the test prompts bring the rows of few readings."""
    return {name: reading for name, reading in found.items() if not math.isnan(reading.value)}


def fluency(scores: Scores) -> float:
    """Perplexity of a state's free answers under the base."""
    found = table.headed("fluency").read(table.Case(scores, scores))
    assert found is not None
    return found.value


def surgical(deltas: dict[str, Reading], axis: Axis) -> bool | None:
    """Whether the target moved as intended and more than every off-target; None: not moved."""
    target = deltas[axis.foundation]
    if not target.moved:
        return None
    intended = axis.sign * target.value > 0
    return intended and all(abs(target.value) > abs(deltas[name].value) for name in axis.off_target)


def retain(
    healed: Scores, steered: Scores, before: Scores, *, control: Scores | None = None
) -> Reading:
    """Share of the steered change of the trait that the healed student keeps.

    With a control, what the student has beyond it.
    """
    h, s, b, c = (_units("trait", state) for state in (healed, steered, before, control or before))
    pair = np.stack([h - c, s - b], axis=1)
    if not mean(pair[:, 1]).moved:
        return Reading.unknown("steering did not move the trait beyond its interval")
    return ratio(pair)


def recovered(healed: Scores, steered: Scores, before: Scores, name: str = "") -> Reading:
    """Share of the coherence lost to steering that the healed student has back.

    `name` is the reading that coherence is read by, the table's own when it is empty.
    """
    entry = next(
        (entry for entry in table.entries() if entry.name == name), table.headed("coherence")
    )
    states = [in_order(state) for state in (healed, before, steered)]
    back, whole, low = (np.array(entry.units(state), dtype=np.float64) for state in states)
    pair = np.stack([back - low, whole - low], axis=1)
    if not mean(pair[:, 1]).low > 0:
        return Reading.unknown(f"steering lost no {entry.title} beyond its interval")
    return ratio(pair)


def kl_to_previous(scores: Scores) -> float:
    """Mean KL to the student before this round, nats per token, on the state's own answers."""
    return _mean([row.kl_to_previous for row in scores.persona])


def _delta_nats(scores: Scores, base: Scores, i: int) -> Reading:
    pair = np.array(
        [
            (row.p[i], other.p[i])
            for row, other in zip(scores.vignettes, base.vignettes, strict=True)
        ]
    )
    return log_ratio(pair)


def _units(part: Part, scores: Scores) -> Floats:
    """A number per unit of the reading that plays a part, in the order of the rows."""
    return np.array(table.headed(part).units(scores), dtype=np.float64)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else math.nan


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
