"""Whether an instrument can see anything on this model, judged from the base's rows alone.

    accuracy   = share of vignettes whose own foundation ranks first
    chance     = Σ_f (share of vignettes that f ranks first on) · (share of vignettes written for f)
    resolution = t · √(2(1 − r)) · s.e.(p̄_t) / p̄_t          p̄_t = mean p of the target
r is the correlation assumed between two states on the same vignette; s.e. is over vignettes.
An instrument that is not fit says why in words; it does not know how other states read.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from steerheal.errors import unknown
from steerheal.measure.stats import quantile, share
from steerheal.personas import Axis
from steerheal.records import FOUNDATIONS, Reading, Record, Scores, VignetteRow
from steerheal.tables import INSTRUMENTS

Floats = NDArray[np.float64]

LIKELIHOOD = "likelihood"
"""The instrument that offers the model no answers."""
LEAST_MASS = 0.5
"""Below this answer mass the model rather writes something else than one of the answers."""
SATURATED_P = 0.99
"""A row whose top probability is above this hardly responds to a small push."""
SATURATED_SHARE = 0.9
"""At this share of saturated rows only vignettes that flip outright can be seen."""
LEAST_VIGNETTES = 1.0
"""With less mass on the target than this many vignettes give, its nats depend on single rows."""
PAIR_CORRELATION = 0.9
"""Correlation assumed between two states' p on the same vignette; the resolution rests on it."""


class Qualification(Record):
    """What an instrument reads on the base, and whether that suffices to compare states with it."""

    fit: bool
    """No reason speaks against it."""
    instrument: str
    answer_mass: float
    """Mean mass on the allowed answers; a likelihood offers none, so the canary's, not judged."""
    accuracy: Reading
    """Share of vignettes ranked right; likelihood is centred on its own means."""
    chance: float
    """Accuracy of the same guesses dealt to the vignettes at random."""
    saturation: float
    """Share of rows with one probability close to 1."""
    resolution: float
    """Smallest |Δ nats| of the target whose paired 95 % interval would exclude 0, were it read
    exactly (so it is missed half of the time); infinite when nothing could be seen."""
    reasons: tuple[str, ...]
    """Why it is not fit, with numbers."""


def qualify(scores: Scores, axis: Axis) -> Qualification:
    """Whether the instrument that left these rows can see the axis on this model.

    Args:
        scores: Rows of the base.
        axis: The target foundation.

    Raises:
        UserError: rows of an unknown instrument.
    """
    if not INSTRUMENTS.knows(scores.instrument):
        raise unknown("instrument", scores.instrument, INSTRUMENTS)
    broken = _unreadable(scores.vignettes)
    if broken:
        return refused(scores.instrument, broken)
    p = np.array([row.p for row in scores.vignettes])
    target = p[:, FOUNDATIONS.index(axis.foundation)]
    found = Qualification(
        fit=True,
        instrument=scores.instrument,
        answer_mass=answer_mass(scores),
        accuracy=share(hits(scores.vignettes, centre(scores))),
        chance=_chance(scores.vignettes, centre(scores)),
        saturation=float((p.max(axis=1) > SATURATED_P).mean()),
        resolution=_resolution(target),
        reasons=(),
    )
    reasons = (*_against(found), *_at_the_floor(target, axis.foundation))
    return found.model_copy(update={"fit": not reasons, "reasons": reasons})


def refused(instrument: str, reason: str) -> Qualification:
    """An instrument that could not be tried at all."""
    return Qualification(
        fit=False,
        instrument=instrument,
        answer_mass=math.nan,
        accuracy=Reading.unknown(reason),
        chance=math.nan,
        saturation=math.nan,
        resolution=math.inf,
        reasons=(reason,),
    )


def in_words(found: Qualification) -> str:
    """The verdict on an instrument in one sentence."""
    verdict = "is fit" if found.fit else "is NOT fit: " + "; ".join(found.reasons)
    return (
        f"instrument {found.instrument} {verdict} (top-1 {found.accuracy.value:.2f} against chance "
        f"{found.chance:.2f}, smallest visible shift {found.resolution:.2f} nats)"
    )


def choose(qualifications: Sequence[Qualification]) -> Qualification:
    """The preferred instrument among the fit ones; when none is fit, the most accurate.

    They are preferred in the order of their table: the model's own choice says more than the
    likelihood of a phrase.
    """
    assert qualifications, "no instrument was tried"
    order = [*INSTRUMENTS]
    ranked = sorted(qualifications, key=lambda item: order.index(item.instrument))
    fit = [item for item in ranked if item.fit]
    return fit[0] if fit else max(ranked, key=_accuracy)


def answer_mass(scores: Scores) -> float:
    """Mean mass on the allowed answers: at the vignettes' own slot, or the canary's for likelihood.

    NaN when there is no such row.
    """
    rows = scores.canary if scores.instrument == LIKELIHOOD else scores.vignettes
    return float(np.mean([row.p_ans_any for row in rows])) if rows else math.nan


def _accuracy(found: Qualification) -> float:
    """Accuracy, with what could not be read below anything that could."""
    return -1.0 if math.isnan(found.accuracy.value) else found.accuracy.value


def centre(scores: Scores) -> Floats:
    """What each foundation's score is worth before a vignette is read: likelihood has to learn it.

    A phrase is likelier than another whatever the act; a forced choice is taken at its word.
    """
    if scores.instrument != LIKELIHOOD:
        return np.zeros(len(FOUNDATIONS))
    return _scores(scores.vignettes).mean(axis=0)


def hits(rows: Sequence[VignetteRow], centre: Floats) -> Floats:
    """1 for a vignette whose own foundation ranks first after centring, else 0; NaN if unread."""
    centred = _scores(rows) - centre
    right = (centred.argmax(axis=1) == _labels(rows)).astype(np.float64)
    return np.where(np.isfinite(centred).all(axis=1), right, np.nan)


def _against(found: Qualification) -> list[str]:
    accuracy, reasons = found.accuracy, []
    if found.instrument != LIKELIHOOD and found.answer_mass < LEAST_MASS:
        reasons.append(
            f"answer mass {found.answer_mass:.2f} is below {LEAST_MASS:g}: the model does not "
            "answer in this format"
        )
    # Written so that an interval that is NaN counts against the instrument.
    if not accuracy.low > found.chance:
        reasons.append(
            f"top-1 {accuracy.value:.2f} [{accuracy.low:.2f}, {accuracy.high:.2f}] is not above "
            f"chance {found.chance:.3f}"
        )
    if found.saturation >= SATURATED_SHARE:
        reasons.append(
            f"saturated: {100 * found.saturation:.0f} % of rows have p > {SATURATED_P:g}"
        )
    return reasons


def _at_the_floor(target: Floats, name: str) -> list[str]:
    worth = target.sum()
    if worth >= LEAST_VIGNETTES:
        return []
    nats = math.log(target.mean()) if worth > 0 else -math.inf
    shown = f"{nats:.1f}".replace("-", "−")
    return [
        f"base nats of {name} {shown}: mass worth {worth:.2g} of {len(target)} vignettes, "
        f"fewer than {LEAST_VIGNETTES:g}"
    ]


def _resolution(target: Floats) -> float:
    if len(target) < 2 or target.mean() == 0:
        return math.inf
    relative = target.std(ddof=1) / math.sqrt(len(target)) / target.mean()
    return quantile(len(target) - 1) * math.sqrt(2 * (1 - PAIR_CORRELATION)) * float(relative)


def _chance(rows: Sequence[VignetteRow], centre: Floats) -> float:
    guesses = (_scores(rows) - centre).argmax(axis=1)
    counts = [np.bincount(found, minlength=len(FOUNDATIONS)) for found in (guesses, _labels(rows))]
    return float((counts[0] * counts[1]).sum() / len(rows) ** 2)


def _unreadable(rows: Sequence[VignetteRow]) -> str:
    if not rows:
        return "no vignettes were measured"
    bad = sum(not np.isfinite([*row.score, *row.p, row.p_ans_any]).all() for row in rows)
    return f"{bad} of {len(rows)} rows are not finite: the model is broken" if bad else ""


def _scores(rows: Sequence[VignetteRow]) -> Floats:
    return np.array([row.score for row in rows]).reshape(-1, len(FOUNDATIONS))


def _labels(rows: Sequence[VignetteRow]) -> NDArray[np.int64]:
    return np.array([FOUNDATIONS.index(row.foundation) for row in rows], dtype=np.int64)
