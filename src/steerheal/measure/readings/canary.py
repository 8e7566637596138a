"""Readings of the canary, a forced JSON slot, and what the trait costs there."""

import math

from steerheal.measure.fluency import perplexity
from steerheal.measure.readings.table import Case, Entry, Pair, bare, headed, mean_log
from steerheal.measure.stats import mean, quotient
from steerheal.records import Reading


def coh_cost(delta_mass: Reading, delta_trait: Reading) -> Reading:
    """|Δ canary mass| per nat of |Δ trait|; unknown while the trait has not moved."""
    if not delta_trait.moved:
        return Reading.unknown("the trait has not moved beyond its interval")
    found = quotient(delta_mass, delta_trait)
    ends = sorted((abs(found.low), abs(found.high)))
    low = 0.0 if found.low <= 0 <= found.high else ends[0]
    return found.model_copy(update={"value": abs(found.value), "low": low, "high": ends[1]})


def _cost(pair: Pair) -> Reading:
    """The cost, or the reason why one of its two parts is unknown."""
    trait, mass = headed("trait").differ(pair), headed("coherence").differ(pair)
    assert trait is not None and mass is not None
    for part in (trait, mass):
        if not math.isfinite(part.value):
            return Reading.unknown(part.reason)
    return coh_cost(mass, trait)


def _opening(case: Case) -> Reading:
    found = [-row.nll_prefill for row in case.scores.canary]
    return bare(perplexity(found), len(found))


def _mass(case: Case) -> Reading:
    return mean([row.p_ans_any for row in case.scores.canary])


ENTRIES = (
    Entry(
        name="canary_mass",
        title="canary mass",
        kind="coherence",
        unit="share",
        needs=("canary",),
        of=lambda row: row.p_ans_any,
        value=_mass,
        damage=-1,
        part="coherence",
        brief=True,
        meaning="probability on the allowed answers at a forced JSON slot",
    ),
    Entry(
        name="canary_perplexity",
        title="perplexity of the JSON opening",
        kind="coherence",
        unit="perplexity",
        needs=("canary",),
        value=_opening,
        change=mean_log("canary", lambda row: math.exp(row.nll_prefill)),
        change_unit="nats/token",
        damage=1,
        meaning="of the forced opening; a change is that of the mean ln",
    ),
    Entry(
        name="coh_cost",
        title="coherence cost",
        kind="coherence",
        needs=("persona", "canary"),
        change=_cost,
        change_unit="share per nat/token",
        damage=1,
        part="cost",
        brief=True,
        meaning="|Δ answer mass| per nat of |Δ trait|; lower is better",
    ),
)
