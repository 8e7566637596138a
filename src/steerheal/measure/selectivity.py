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
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steerheal.errors import UserError, unknown
from steerheal.measure.stats import Statistic, jackknife, mean, share_change
from steerheal.personas import Axis
from steerheal.records import FOUNDATIONS, Reading, Scores, VignetteRow

Floats = NDArray[np.float64]
Row = TypeVar("Row")

UNITS: dict[str, tuple[str, Callable[[Any], Hashable]]] = {
    "vignettes": ("vignettes", lambda row: (row.id, row.condition)),
    "persona": ("prompts", lambda row: row.completion.prompt),
    "canary": ("canary statements", lambda row: row.id),
}
"""What the rows in each field of `Scores` are about, and what pairs them."""
FIX = "Measure both states with the same persona and --measure settings."


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


def matched_vignettes(
    pos_rows: Sequence[VignetteRow], neg_rows: Sequence[VignetteRow]
) -> list[tuple[VignetteRow, VignetteRow]]:
    """Both arms' rows of every vignette and condition, in the order of the first arm.

    Raises:
        UserError: no rows, a vignette twice under a condition, or vignettes that only one arm has.
    """
    return matched(pos_rows, neg_rows, "vignettes")


def matched(pos_rows: Sequence[Row], neg_rows: Sequence[Row], field: str) -> list[tuple[Row, Row]]:
    """Both arms' rows of every unit in a field of `Scores`, in the order of the first arm.

    Raises:
        UserError: no rows, a key twice in one arm, or keys that only one arm has.
    """
    what, key = UNITS[field]
    pos, neg = _by_key(pos_rows, key, what), _by_key(neg_rows, key, what)
    if not pos and not neg:
        raise UserError(f"Neither state has {what} to compare. {FIX}")
    if pos.keys() != neg.keys():
        raise UserError(
            f"The two states were measured on different {what}: {len(pos.keys() & neg.keys())} "
            f"match, of {len(pos)} and {len(neg)}. {FIX}"
        )
    return [(row, neg[name]) for name, row in pos.items()]


@dataclass(frozen=True)
class Paired:
    """Rows of b and a on the same units, or the reason why there are none."""

    b: list[Any]
    a: list[Any]
    missing: str

    def read(self, measure: Callable[[list[Any], list[Any]], Reading]) -> Reading:
        """What `measure` makes of b's rows and a's."""
        return Reading.unknown(self.missing) if self.missing else measure(self.b, self.a)

    def over(
        self, pair: Callable[[Any, Any], Any], found: Callable[[ArrayLike], Reading] = mean
    ) -> Reading:
        """The mean, or another reading, of what `pair` makes of a unit's two rows."""
        return self.read(lambda b, a: found([pair(*rows) for rows in zip(b, a, strict=True)]))

    def change(self, value: Callable[[Any], float]) -> Reading:
        """Mean of b's value minus a's."""
        return self.over(lambda one, other: value(one) - value(other))


def in_order(scores: Scores) -> Scores:
    """The same rows in the order of their keys, so that two states pair row by row."""
    rows = {
        field: tuple(sorted(getattr(scores, field), key=lambda row, key=key: str(key(row))))
        for field, (_, key) in UNITS.items()
    }
    return scores.model_copy(update=rows)


def paired(b: Scores, a: Scores, field: str) -> Paired:
    """What b and a measured in a field of `Scores`, in the order of the keys that pair it.

    Raises:
        UserError: a key twice in one state, or keys that only one state has.
    """
    what, _ = UNITS[field]
    sides = {"b": b, "a": a}
    lacking = [f"{name} ({side.state})" for name, side in sides.items() if not getattr(side, field)]
    if lacking:
        return Paired([], [], f"no {what} were measured for {' and '.join(lacking)}")
    pairs = matched(getattr(in_order(b), field), getattr(a, field), field)
    return Paired([one for one, _ in pairs], [other for _, other in pairs], "")


def _by_key(rows: Sequence[Row], key: Callable[[Row], Hashable], what: str) -> dict[Hashable, Row]:
    found: dict[Hashable, Row] = {}
    for row in rows:
        name = key(row)
        if name in found:
            raise UserError(f"A state holds {name!r} twice among its {what}. Measure each once.")
        found[name] = row
    return found


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
