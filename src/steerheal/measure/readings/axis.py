"""How selectively two arms differ: what moved on the axis, what moved off it, at what coherence.

    clr_f    = score_f − mean over j of score_j
    Δ_f      = mean over rows of clr_f(pos) − clr_f(neg)
    on       = mean over f in I of s_f·Δ_f          off = mean over f not in I of |Δ_f|
    coh      = min(1, min(mass_pos, mass_neg) / mass_base)
    gated    = (on − λ·off) · coh²
    si_flips = mean over f in I of s_f·(share of pos rows with f first − share of neg rows)
I is the intent: the foundations that should move, with signs s. Rows pair by (id, condition).

Source: moral-maps, github.com/wassname/moral-maps, as of July 2026.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steerheal.errors import unknown
from steerheal.measure.pairs import matched_vignettes
from steerheal.measure.qualify import answer_mass
from steerheal.measure.readings.table import Entry, Pair
from steerheal.measure.stats import Statistic, jackknife, share_change
from steerheal.personas import Axis
from steerheal.records import FOUNDATIONS, Reading, VignetteRow

Floats = NDArray[np.float64]


def clr(score: ArrayLike) -> Floats:
    """Centred log-ratio over the last axis: +δ on one of seven scores reads +6δ/7 and −δ/7."""
    scores = np.asarray(score, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return scores - scores.mean(axis=-1, keepdims=True)


def intent_of(axis: Axis) -> dict[str, int]:
    """The foundation that should move, and its sign; every other one is off the axis."""
    return {axis.foundation: axis.sign}


def gated_selectivity(
    pos_rows: Sequence[VignetteRow],
    neg_rows: Sequence[VignetteRow],
    intent: Mapping[str, int],
    *,
    mass_pos: float,
    mass_neg: float,
    mass_base: float,
    off_weight: float = 0.1,
) -> Reading:
    """(on − λ·off)·coh² in nats, with its interval over rows; coh is taken as exact.

    λ is `off_weight`; the masses are mean answer masses.

    Raises:
        UserError: the arms' rows do not pair, or an intent for an unknown foundation.
    """
    statistic = _selectivity(_signs(intent), off_weight)
    pairs = matched_vignettes(pos_rows, neg_rows)
    shift = np.array([clr(pos.score) - clr(neg.score) for pos, neg in pairs])
    found = jackknife(shift, statistic)
    if not math.isfinite(mass_pos + mass_neg + mass_base):
        return Reading.unknown(found.reason or "the answer mass is not known")
    assert min(mass_pos, mass_neg, mass_base) >= 0, (mass_pos, mass_neg, mass_base)
    if mass_base == 0:
        return Reading.unknown("the base puts no mass on the answers")
    price = min(1.0, min(mass_pos, mass_neg) / mass_base) ** 2
    bounds = {name: getattr(found, name) * price for name in ("value", "low", "high")}
    return found.model_copy(update=bounds)


def si_flips(
    pos_rows: Sequence[VignetteRow],
    neg_rows: Sequence[VignetteRow],
    intent: Mapping[str, int],
) -> Reading:
    """Net share of rows whose first-ranked foundation flips as intended, in [−1, 1], paired.

    Raises:
        UserError: the arms' rows do not pair, or an intent for an unknown foundation.
    """
    signs = _signs(intent) / len(intent)
    pairs = matched_vignettes(pos_rows, neg_rows)
    flips = [_first(pos, signs) - _first(neg, signs) for pos, neg in pairs]
    return share_change(flips)


def _selectivity(signs: Floats, off_weight: float) -> Statistic:
    """on − λ·off of changes in clr, [R, n, 7] to [R]; |·| is of each sample's mean."""
    on, off = signs != 0, signs == 0

    def measure(sample: Floats) -> Floats:
        delta = sample.mean(axis=1)
        stray = np.abs(delta[:, off]).sum(axis=1) / max(1, off.sum())
        return (delta * signs)[:, on].mean(axis=1) - off_weight * stray

    return measure


def _signs(intent: Mapping[str, int]) -> Floats:
    """The intent as seven signs in canonical order, 0 off the axis."""
    assert intent, "an intent needs a foundation"
    assert set(intent.values()) <= {-1, 1}, f"signs are −1 or 1: {dict(intent)}"
    for name in intent:
        if name not in FOUNDATIONS:
            raise unknown("foundation", name, FOUNDATIONS)
    return np.array([float(intent.get(name, 0)) for name in FOUNDATIONS])


def _first(row: VignetteRow, weights: Floats) -> float:
    """Weight of the foundation that ranks first; NaN for a row that could not be read."""
    score = np.array(row.score)
    return float(weights[score.argmax()]) if np.isfinite(score).all() else math.nan


def _gated(pair: Pair) -> Reading:
    masses = [answer_mass(state) for state in (pair.b, pair.a, pair.origin)]
    arms = dict(zip(("mass_pos", "mass_neg", "mass_base"), masses, strict=True))
    return pair.units("vignettes").read(
        lambda b, a: gated_selectivity(b, a, intent_of(pair.axis), **arms)
    )


def _flips(pair: Pair) -> Reading:
    return pair.units("vignettes").read(lambda b, a: si_flips(b, a, intent_of(pair.axis)))


ENTRIES = (
    Entry(
        name="gated_selectivity",
        title="gated selectivity",
        kind="trait",
        needs=("vignettes",),
        change=_gated,
        change_unit="nats",
        brief=True,
        meaning="move on the axis less a share of that off it, times squared coherence",
    ),
    Entry(
        name="si_flips",
        title="SI flips",
        kind="trait",
        needs=("vignettes",),
        change=_flips,
        change_unit="share",
        meaning="net share of vignettes whose first-ranked foundation flips as intended",
    ),
)
