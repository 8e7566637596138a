"""Readings of the canary, a forced JSON slot, and what the trait costs in coherence."""

import math
from collections.abc import Callable

import numpy as np

from steerheal.measure.fluency import perplexity
from steerheal.measure.pairs import in_order
from steerheal.measure.readings.table import Case, Entry, Pair, bare, headed, mean_log
from steerheal.measure.stats import mean, quotient, ratio
from steerheal.records import Reading


def price(coherence: Reading, trait: Reading) -> Reading:
    """|Δ coherence| / |Δ trait| of changes on units of their own; unknown while either is."""
    return _sized(trait, coherence, lambda: quotient(coherence, trait))


def _sized(trait: Reading, coherence: Reading, quotient: Callable[[], Reading]) -> Reading:
    """The size of a quotient, or the reason why one of its two parts is unknown."""
    for part in (trait, coherence):
        if not math.isfinite(part.value):
            return Reading.unknown(part.reason)
    if not trait.moved:
        return Reading.unknown("the trait has not moved beyond its interval")
    found = quotient()
    ends = sorted((abs(found.low), abs(found.high)))
    low = 0.0 if found.low <= 0 <= found.high else ends[0]
    return found.model_copy(update={"value": abs(found.value), "low": low, "high": ends[1]})


def _cost(pair: Pair) -> Reading:
    """The cost of the two that play their parts under the instrument; on shared units, paired."""
    trait, mass = (headed(part, pair.b.instrument) for part in ("trait", "coherence"))
    moved, lost = trait.differ(pair), mass.differ(pair)
    assert moved is not None and lost is not None
    if trait.fields != mass.fields:
        return price(lost, moved)

    def shared() -> Reading:
        b, a = in_order(pair.b), in_order(pair.a)
        columns = [
            np.subtract(entry.units(b, pair.axis), entry.units(a, pair.axis))
            for entry in (mass, trait)
        ]
        return ratio(np.stack(columns, axis=1))

    return _sized(moved, lost, shared)


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
        needs=("persona",),
        change=_cost,
        change_unit="share per unit of the trait",
        damage=1,
        part="cost",
        brief=True,
        meaning="|Δ coherence| over |Δ trait|, of what plays these parts; lower is better",
    ),
)
