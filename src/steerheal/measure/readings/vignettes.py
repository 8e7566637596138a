"""What vignettes tell of damage: whether they are still ranked right, and what is called fine."""

import numpy as np

from steerheal.measure.qualify import centre, hits
from steerheal.measure.readings.table import Case, Entry, Pair
from steerheal.measure.stats import share, share_change
from steerheal.records import FOUNDATIONS, Reading, VignetteRow

SOCIAL = FOUNDATIONS.index("social")


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


ENTRIES = (
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
