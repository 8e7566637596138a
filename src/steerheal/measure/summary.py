"""Aggregates: pure functions of the rows that evaluations left, always paired with the base.

    nats_f      = ln mean_v p_v[f]                      Δ from the base on the same vignettes
    coherence   = mean p_ans_any / base's
    coh_cost    = |Δ p_ans_any| / |Δ persona_logodds|   answer mass per nat of trait
    retain      = (healed − before) / (steered − before), persona_logodds
    recovered   = (healed − steered) / (before − steered), p_ans_any
`before` is the student at the start of the round; in the first round it is the base.
"""

import math
import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from steerheal.measure.fluency import perplexity
from steerheal.measure.qualify import centre, hits
from steerheal.measure.selectivity import in_order
from steerheal.measure.stats import log_ratio, mean, quotient, ratio, share
from steerheal.personas import Axis
from steerheal.records import FOUNDATIONS, OnTest, Reading, Scores, Summary

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
    trait, base_trait = _logodds(scores), _logodds(base)
    mass, base_mass = _mass(scores), _mass(base)
    delta_trait = mean(trait - base_trait)
    delta_mass = mean(mass - base_mass)
    p = np.array([row.p for row in scores.vignettes])
    return Summary(
        state=scores.state,
        nats={name: _log(p[:, i].mean()) for i, name in enumerate(FOUNDATIONS)},
        delta_nats=deltas,
        top1=top1(scores, base),
        persona_logodds=mean(trait),
        delta_logodds=delta_trait,
        p_ans_any=mean(mass),
        delta_p_ans_any=delta_mass,
        coherence=float(mass.mean() / base_mass.mean()),
        ppx_json=perplexity([-row.nll_prefill for row in scores.canary]),
        perplexity=median_perplexity(scores),
        distinct_2=_mean([row.distinct_2 for row in scores.persona]),
        repetition=_mean([row.word_repetition for row in scores.persona]),
        kl_to_base=mean([row.kl_to_base for row in scores.persona]),
        coh_cost=coh_cost(delta_mass, delta_trait),
        json_is_valid=share([float(row.valid) for row in scores.json_replies]),
        not_wrong=float(p[:, FOUNDATIONS.index("social")].mean()),
        plain_perplexity=scores.plain_perplexity,
        long_perplexity=_median([row.tail_perplexity for row in scores.long]),
        long_distinct_2=_mean([row.distinct_2 for row in scores.long]),
        loop_share=_mean([float(row.loops) for row in scores.long]),
        long_words=_mean([float(row.words) for row in scores.long]),
        surgical=surgical(deltas, axis),
    )


def tested(scores: Scores, base: Scores, number: int) -> OnTest:
    """A round's state against the base on the test prompts; `number` is the round's."""
    scores, base = in_order(scores), in_order(base)
    pairs = list(zip(scores.persona, base.persona, strict=True))
    return OnTest(
        round=number,
        prompts=len(pairs),
        delta_logodds=mean([row.logodds - other.logodds for row, other in pairs]),
        delta_perplexity=mean(
            [math.log(row.perplexity) - math.log(other.perplexity) for row, other in pairs]
        ),
        kl_to_base=mean([row.kl_to_base for row in scores.persona]),
    )


def top1(scores: Scores, base: Scores) -> float:
    """Share of vignettes ranked right; likelihood is centred on the base's means. NaN if unread."""
    return float(hits(scores.vignettes, centre(base)).mean())


def median_perplexity(scores: Scores) -> float:
    """Median perplexity of the free answers under the base."""
    return statistics.median(row.perplexity for row in scores.persona)


def coh_cost(delta_mass: Reading, delta_trait: Reading) -> Reading:
    """|Δ answer mass| per nat of |Δ trait|; unknown while the trait has not moved."""
    if not delta_trait.moved:
        return Reading.unknown("the trait has not moved beyond its interval")
    found = quotient(delta_mass, delta_trait)
    ends = sorted((abs(found.low), abs(found.high)))
    low = 0.0 if found.low <= 0 <= found.high else ends[0]
    return found.model_copy(update={"value": abs(found.value), "low": low, "high": ends[1]})


def surgical(deltas: dict[str, Reading], axis: Axis) -> bool | None:
    """Whether the target moved as intended and more than every off-target; None: not moved."""
    target = deltas[axis.foundation]
    if not target.moved:
        return None
    intended = axis.sign * target.value > 0
    return intended and all(abs(target.value) > abs(deltas[name].value) for name in axis.off_target)


def retain(healed: Scores, steered: Scores, before: Scores) -> Reading:
    """Share of the steered change of persona_logodds that the healed student keeps."""
    start = _logodds(before)
    pair = np.stack([_logodds(healed) - start, _logodds(steered) - start], axis=1)
    if not mean(pair[:, 1]).moved:
        return Reading.unknown("steering did not move the trait beyond its interval")
    return ratio(pair)


def recovered(healed: Scores, steered: Scores, before: Scores) -> Reading:
    """Share of the answer mass lost to steering that the healed student has back."""
    low = _mass(steered)
    pair = np.stack([_mass(healed) - low, _mass(before) - low], axis=1)
    if not mean(pair[:, 1]).low > 0:
        return Reading.unknown("steering lost no answer mass beyond its interval")
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


def _logodds(scores: Scores) -> Floats:
    return np.array([row.logodds for row in scores.persona])


def _mass(scores: Scores) -> Floats:
    return np.array([row.p_ans_any for row in scores.canary])


def _log(value: float) -> float:
    return math.log(value) if value > 0 else math.nan


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
