"""Aggregates: pure functions of the rows that evaluations left, always paired with the base.

    nats_f      = ln mean_v p_v[f]                      Δ from the base on the same vignettes
    coherence   = what coherence is read by, over the base's
    of_prompt   = (state − base) / (base under the persona's system prompt − base), of the trait
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
from steerheal.records import FOUNDATIONS, UNREAD, OnTest, Reading, Readings, Scores, Summary

Floats = NDArray[np.float64]


def summarise(scores: Scores, base: Scores, axis: Axis, prompted: Scores | None = None) -> Summary:
    """A state against the base.

    Args:
        scores: The state's rows.
        base: The base's rows on the same vignettes and prompts.
        axis: Which foundation should have moved, which way, and which should not.
        prompted: The base's under the persona's system prompt, where they were read.
    """
    scores, base = in_order(scores), in_order(base)
    deltas = {name: _delta_nats(scores, base, i) for i, name in enumerate(FOUNDATIONS)}
    heads, values = table.heads(scores.instrument), table.values(scores, base, axis)
    whole = table.values(base, base, axis)[heads["coherence"]].value
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
        of_prompt=UNREAD if prompted is None else of_prompt(scores, base, prompted, axis),
    )


def tested(
    scores: Scores, base: Scores, number: int, axis: Axis, control: Scores | None = None
) -> OnTest:
    """A round's state, and its control, on the test prompts; `number` is the round's."""
    return OnTest(
        round=number,
        prompts=len(scores.persona),
        control=None if control is None else partly(control, base, base, axis),
        over_control=None if control is None else partly(scores, control, base, axis),
        **dict(partly(scores, base, base, axis)),
    )


def partly(b: Scores, a: Scores, base: Scores, axis: Axis) -> Readings:
    """What was read of a state that has the rows of few readings, and how it differs from `a`."""
    b, a, base = in_order(b), in_order(a), in_order(base)
    return Readings(
        values=_known(table.values(b, base, axis)),
        changes=_known(table.changes(b, a, base, axis)),
        heads=table.heads(b.instrument),
    )


def _known(found: dict[str, Reading]) -> dict[str, Reading]:
    """What was read of these."""
    return {name: reading for name, reading in found.items() if not math.isnan(reading.value)}


def fluency(scores: Scores, axis: Axis) -> float:
    """Perplexity of a state's free answers under the base."""
    found = table.headed("fluency").read(table.Case(scores, scores, axis))
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
    healed: Scores, steered: Scores, before: Scores, axis: Axis, *, control: Scores | None = None
) -> Reading:
    """Share of the steered change of the trait that the healed student keeps.

    With a control, what the student has beyond it.
    """
    pair = _differences((healed, control or before), (steered, before), axis)
    if not mean(pair[:, 1]).moved:
        return Reading.unknown("steering did not move the trait beyond its interval")
    return ratio(pair)


def of_prompt(scores: Scores, base: Scores, prompted: Scores, axis: Axis) -> Reading:
    """A state's change of the trait over what the persona's system prompt changes it by."""
    pair = _differences((scores, base), (prompted, base), axis)
    if not mean(pair[:, 1]).low > 0:
        return Reading.unknown("the system prompt did not raise the trait beyond its interval")
    return ratio(pair)


def recovered(
    healed: Scores, steered: Scores, before: Scores, axis: Axis, name: str = ""
) -> Reading:
    """Share of the coherence lost to steering that the healed student has back.

    `name` is the reading that coherence is read by, the instrument's own when it is empty.
    """
    own = table.headed("coherence", healed.instrument)
    entry = next((entry for entry in table.entries() if entry.name == name), own)
    back, whole, low = (_units(entry, state, axis) for state in (healed, before, steered))
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


def _differences(one: tuple[Scores, Scores], other: tuple[Scores, Scores], axis: Axis) -> Floats:
    """Differences in the trait of two pairs of states, shape [n, 2], a row per unit."""
    trait = table.headed("trait", one[0].instrument)
    columns = [_units(trait, b, axis) - _units(trait, a, axis) for b, a in (one, other)]
    return np.stack(columns, axis=1)


def _units(entry: table.Entry, scores: Scores, axis: Axis) -> Floats:
    """A number per unit of a reading, in the order of the units' keys."""
    return np.array(entry.units(in_order(scores), axis), dtype=np.float64)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else math.nan


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
