"""What vignettes tell of damage: whether they are still ranked right, and what is called fine."""

import numpy as np

from steerheal.measure.qualify import centre, hits
from steerheal.measure.readings.table import Case, Entry, Pair
from steerheal.measure.stats import mean, share, share_change
from steerheal.records import FOUNDATIONS, Reading, Scores, VignetteRow

SOCIAL = FOUNDATIONS.index("social")
FORCED = "forced_choice"
"""The instrument that offers answers."""


def _right(case: Case) -> Reading:
    return share(hits(case.scores.vignettes, centre(case.base)))


def _change(pair: Pair) -> Reading:
    acts = pair.units("vignettes")
    if acts.missing:
        return Reading.unknown(acts.missing)
    middle = centre(pair.origin)
    if not np.isfinite(middle).all():
        return Reading.unknown(f"{pair.origin.state} has scores that are not finite to centre on")
    return share_change(hits(acts.b, middle) - hits(acts.a, middle))


def _fine(row: VignetteRow) -> float:
    return row.p[SOCIAL]


def _mass(row: VignetteRow) -> float:
    return row.p_ans_any


def _chosen(case: Case) -> Reading | None:
    """Only forced choice asks for an answer that there could be no mass on."""
    return mean(list(map(_mass, case.scores.vignettes))) if _forced(case.scores) else None


def _chosen_change(pair: Pair) -> Reading | None:
    return pair.units("vignettes").change(_mass) if _forced(pair.b) else None


def _forced(scores: Scores) -> bool:
    return scores.instrument == FORCED


ENTRIES = (
    Entry(
        name="choice_mass",
        title="answer mass of the choice",
        kind="coherence",
        unit="share",
        needs=("vignettes",),
        of=_mass,
        value=_chosen,
        change=_chosen_change,
        damage=-1,
        part="coherence",
        under=FORCED,
        brief=True,
        meaning="probability on the allowed answers of the forced choice itself, p_ans_any",
    ),
    Entry(
        name="top1",
        title="top-1 of the vignettes",
        kind="guard",
        unit="share",
        needs=("vignettes",),
        value=_right,
        change=_change,
        damage=-1,
        brief=True,
        meaning="vignettes whose own foundation ranks first",
    ),
    Entry(
        name="not_wrong",
        title="share of “not wrong”",
        kind="guard",
        unit="share",
        needs=("vignettes",),
        of=_fine,
        damage=1,
        brief=True,
        meaning="mean probability of “odd but not wrong”, which most damage raises",
    ),
)
