"""The persona's foundation against those that should stay, in nats along the axis.

    N(w)           = Σ_f w_f · ln mean_v p_v[f]
    on-target        w = s at the target
    off-target       w = s/k at each of the k off-target foundations
    discrimination   w = on-target's − off-target's
s is the axis's sign. Off-target is signed like on-target, and not a mean of sizes, so that a shift
that all foundations share (more of “not wrong”, say) cancels in their difference; off-target moves
of opposite signs cancel as well, and gated selectivity, which takes sizes, still shows them.
"""

import numpy as np
from numpy.typing import NDArray

from steerheal.measure.readings.table import Case, Entry, Pair
from steerheal.measure.readings.vignettes import FORCED
from steerheal.measure.stats import Statistic, jackknife, log_ratio
from steerheal.personas import Axis
from steerheal.records import FOUNDATIONS, Reading, Scores, VignetteRow

Floats = NDArray[np.float64]


def _on(axis: Axis) -> Floats:
    """Weights of the seven foundations, in canonical order."""
    return axis.sign * np.array([float(name == axis.foundation) for name in FOUNDATIONS])


def _off(axis: Axis) -> Floats:
    inside = np.array([float(name in axis.off_target) for name in FOUNDATIONS])
    return axis.sign * inside / max(1.0, inside.sum())


def _difference(axis: Axis) -> Floats:
    return _on(axis) - _off(axis)


def _p(rows: list[VignetteRow] | tuple[VignetteRow, ...]) -> Floats:
    return np.array([row.p for row in rows], dtype=np.float64)


def _nats(weights: Floats) -> Statistic:
    """N(w) of samples [R, n, 7]; of [R, n, 2, 7] that of the first less that of the second."""
    used = np.flatnonzero(weights)

    def measure(sample: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.log(sample[..., used].mean(axis=1)) @ weights[used]
            return found if found.ndim == 1 else found[:, 0] - found[:, 1]

    return measure


def _value(case: Case) -> Reading:
    return jackknife(_p(case.scores.vignettes), _nats(_on(case.axis)))


def _change(pair: Pair) -> Reading:
    """As the foundation's own, turned along the axis."""
    place, sign = FOUNDATIONS.index(pair.axis.foundation), pair.axis.sign
    found = pair.units("vignettes").over(lambda b, a: (b.p[place], a.p[place]), log_ratio)
    if not np.isfinite(found.value):
        return found
    low, high = sorted((sign * found.low, sign * found.high))
    return found.model_copy(update={"value": sign * found.value, "low": low, "high": high})


def _units(scores: Scores, axis: Axis) -> list[float]:
    """s·(ln m + p_v/m − 1) per vignette, m the mean p of the target.

    The mean difference of two states is the log ratio, and its spread is right to first order.
    """
    p = _p(scores.vignettes)[:, FOUNDATIONS.index(axis.foundation)]
    with np.errstate(divide="ignore", invalid="ignore"):
        return list(axis.sign * (np.log(p.mean()) + p / p.mean() - 1))


def _lacking(axis: Axis) -> Reading | None:
    return (
        None if axis.off_target else Reading.unknown("the persona names no off-target foundation")
    )


def _off_value(case: Case) -> Reading:
    return _lacking(case.axis) or jackknife(_p(case.scores.vignettes), _nats(_off(case.axis)))


def _difference_value(case: Case) -> Reading:
    weights = _difference(case.axis)
    return _lacking(case.axis) or jackknife(_p(case.scores.vignettes), _nats(weights))


def _changed(pair: Pair, weights: Floats) -> Reading:
    statistic = _nats(weights)
    return _lacking(pair.axis) or pair.units("vignettes").read(
        lambda b, a: jackknife(np.stack([_p(b), _p(a)], axis=1), statistic)
    )


ENTRIES = (
    Entry(
        name="nats_on_target",
        title="on-target foundation",
        kind="trait",
        unit="nats",
        needs=("vignettes",),
        spread=_units,
        value=_value,
        change=_change,
        part="trait",
        under=FORCED,
        brief=True,
        meaning="ln mean probability of the persona's foundation, signed as its axis intends",
    ),
    Entry(
        name="nats_off_target",
        title="off-target foundations",
        kind="trait",
        unit="nats",
        needs=("vignettes",),
        value=_off_value,
        change=lambda pair: _changed(pair, _off(pair.axis)),
        brief=True,
        meaning="mean of the off-target foundations' nats, signed like the on-target one, so that "
        "a shift of all foundations shows in both alike",
    ),
    Entry(
        name="nats_discrimination",
        title="discrimination",
        kind="trait",
        unit="nats",
        needs=("vignettes",),
        value=_difference_value,
        change=lambda pair: _changed(pair, _difference(pair.axis)),
        brief=True,
        meaning="on-target less off-target: what moved beyond a shift that foundations share",
    ),
)
