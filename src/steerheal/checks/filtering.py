"""Check 2: can the filter tell what steering broke from what it taught?

In: a round's harvest, the base's scores and, where there is one, the round's sweep. Survival and
tail perplexity are compared between the lower and the upper third of the doses. Kept text is held
against the base's own answers: a kept text is loop-like when it repeats more, or varies less, than
95 % of those by a margin. It reads the filter's numbers and never its settings.
"""

import math
import statistics
from collections.abc import Sequence

import numpy as np

from steerheal.checks.rules import (
    Check,
    Evidence,
    Rule,
    known,
    over,
)
from steerheal.numbers import written
from steerheal.records import Calibration, Harvest, Judged, Scores, Sweep

FLAT_SURVIVAL = 0.1
"""Difference in survival between low and high doses that counts as none: about the standard error
of one batch's third."""
CLEAR = 2.0
"""Standard errors that a fall in survival must span to be one."""
RISE = 1.1
"""Ratio of tail perplexities, high over low doses, from which it rises: as flat as a sweep's."""
BASE_LIKE = 0.05
"""Nats per token of KL to the base below which kept text counts as the base's own: half of what
the barrier lets pass for free by default."""
FAR_BELOW = 0.5
"""Share of the lowest dose that moved the trait below which a kept dose teaches nothing; it
serves where the completions' KL was not read."""
LOOP_MARGIN = 0.1
"""How far past 95 % of the base's own answers a kept text counts as loop-like."""
LEAK = 0.1
"""Share of loop-like kept texts that is a leak: by construction the base has at most 0.05."""
DOMINATES = 0.5
"""Share of the dropped completions from which one reason dominates."""
MANY = 0.25
"""Share of all completions that must narrate for that to matter: fewer leave a round fed."""
THOUGHT = "thought"
"""The filter's reason for a completion that holds a thought."""
NARRATION = "narrat"
"""How the filter's reasons about narration begin."""


class Filtering(Evidence):
    """What check 2 looks at."""

    fed: bool
    drawn: int
    kept: int
    """At the accepted dose."""
    multiplier: float
    dose_low: float
    """Mean dose of the lower third."""
    dose_high: float
    survival_low: float
    survival_high: float
    fall: float
    """Fall in survival from low to high doses, in standard errors."""
    perplexity_low: float
    perplexity_high: float
    kept_dose: float
    kept_kl: float
    """Mean KL(steered‖base) of kept completions, nats per token."""
    moving_dose: float
    """Lowest dose at which the sweep's trait moved beyond its interval."""
    kept_logodds: float
    """Mean log-odds of kept completions less that of the base's answers, nats per token."""
    kept_loops: float
    """Share of loop-like kept completions."""
    kept_distinct_2: float
    kept_repetition: float
    narrating: float
    """Share of all completions dropped for narration."""
    narrating_dropped: float
    """The same among the dropped."""
    top_reason: str
    top_count: int
    fresh_drop: float
    """Share of the base's own fresh text that the filter drops."""
    promise: str
    """What the calibration texts are too few to promise, in words; empty when nothing."""

    @property
    def rise(self) -> float:
        """Tail perplexity of high over low doses."""
        return over(self.perplexity_high, self.perplexity_low)

    @property
    def drop(self) -> float:
        """Survival of low less that of high doses."""
        return self.survival_low - self.survival_high

    @property
    def base_like(self) -> bool:
        """Whether kept text is as the base's, by its KL, or by its dose where that is unknown."""
        if known(self.kept_kl):
            return self.kept_kl <= BASE_LIKE
        return self.kept_dose <= FAR_BELOW * self.moving_dose

    @property
    def remedy(self) -> str:
        """What to do about the commonest reason."""
        if self.top_reason == THOUGHT:
            return (
                "switch the model's thinking off (--model.template-vars, or a --model.template "
                "that opens no thought), or train on thoughts too (--filter.thoughts)."
            )
        return (
            f"loosen the rule behind “{self.top_reason}” (--filter.*) only if the dropped samples "
            "read well."
        )

    @property
    def course(self) -> str:
        """Survival and perplexity from low to high doses."""
        if not known(self.drop):
            said = f"doses cannot be compared; {self.kept} of {self.drawn} completions were kept"
            return said + self.unsteered
        return written(
            "from dose {e.dose_low} to {e.dose_high} survival goes {e.survival_low} → "
            "{e.survival_high} and tail perplexity {e.perplexity_low} → {e.perplexity_high}"
            "{e.unsteered}",
            self,
        )

    @property
    def unsteered(self) -> str:
        """What the filter drops of text that nothing has pushed."""
        if not known(self.fresh_drop):
            return ""
        said = written("; of the base's own fresh text {e.fresh_drop:%} is dropped", self)
        return f"{said} ({self.promise})" if self.promise else said

    @property
    def taught(self) -> str:
        """How far kept text is from the base."""
        return written(
            "mean dose {e.kept_dose}, KL {e.kept_kl} and log-odds {e.kept_logodds:+} nats/token "
            "from the base",
            self,
        )

    @property
    def plainly(self) -> str:
        """Course, kept and its distance from the base."""
        return f"{self.course}; kept text: {self.taught}"


def evidence(harvest: Harvest, base: Scores, sweep: Sweep | None) -> Filtering:
    """Check 2's evidence.

    Args:
        harvest: Everything drawn in the round, with verdicts.
        base: The base's free answers, which kept text is held against.
        sweep: Doses read in this round; says from which dose on the trait moves.
    """
    rows, limits = harvest.judged, harvest.calibration
    low, high = _thirds(rows)
    trained = {id(completion) for completion in harvest.kept()}
    kept = [row for row in rows if id(row.completion) in trained]
    dropped = [row for row in rows if not row.verdict.kept]
    narrating = sum(_narrates(row) for row in rows)
    reasons = harvest.reasons()
    top = max(reasons, key=lambda name: reasons[name], default="nothing")
    base_logodds = _mean([row.logodds for row in base.persona])
    return Filtering(
        fed=harvest.outcome == "fed",
        drawn=len(rows),
        kept=len(kept),
        multiplier=harvest.multiplier,
        dose_low=_mean([row.completion.dose for row in low]),
        dose_high=_mean([row.completion.dose for row in high]),
        survival_low=_survival(low),
        survival_high=_survival(high),
        fall=_fall(low, high),
        perplexity_low=_median([row.verdict.tail_perplexity for row in low]),
        perplexity_high=_median([row.verdict.tail_perplexity for row in high]),
        kept_dose=_mean([row.completion.dose for row in kept]),
        kept_kl=_mean([row.verdict.kl for row in kept]),
        moving_dose=_moving(sweep),
        kept_logodds=_mean([row.verdict.logodds for row in kept]) - base_logodds,
        kept_loops=_loops(kept, base),
        kept_distinct_2=_mean([row.verdict.distinct_2 for row in kept]),
        kept_repetition=_mean([row.verdict.word_repetition for row in kept]),
        narrating=narrating / len(rows) if rows else math.nan,
        narrating_dropped=narrating / len(dropped) if dropped else math.nan,
        top_reason=top,
        top_count=reasons.get(top, 0),
        fresh_drop=limits.fresh.get("together", math.nan) if limits else math.nan,
        promise=_promise(limits),
    )


def _promise(calibration: Calibration | None) -> str:
    """The least share that a rule can be set at, where that is more than was asked for."""
    if calibration is None or not calibration.too_few:
        return ""
    least = max(calibration.too_few.values())
    return (
        f"{calibration.texts} calibration texts cannot set a rule below {100 * least:.1f} %, and "
        f"{len(calibration.too_few)} were to drop less: raise --filter.calibration-texts"
    )


def _narrates(row: Judged) -> bool:
    return any(reason.startswith(NARRATION) for reason in row.verdict.reasons)


def _thirds(rows: Sequence[Judged]) -> tuple[list[Judged], list[Judged]]:
    """The rows of the lowest and of the highest doses; nothing when all have one dose."""
    doses = [row.completion.dose for row in rows]
    if len(set(doses)) < 2:
        return [], []
    lower, upper = np.quantile(doses, (1 / 3, 2 / 3), method="nearest")
    if lower == upper:
        lower, upper = min(doses), max(doses)
    low = [row for row in rows if row.completion.dose <= lower]
    return low, [row for row in rows if row.completion.dose >= upper]


def _survival(rows: Sequence[Judged]) -> float:
    return sum(row.verdict.kept for row in rows) / len(rows) if rows else math.nan


def _fall(low: Sequence[Judged], high: Sequence[Judged]) -> float:
    """Difference of two shares over its standard error; NaN without rows."""
    if not low or not high:
        return math.nan
    # One success and one failure more, so that a share of 0 or 1 has an error too.
    shares = [
        ((sum(row.verdict.kept for row in rows) + 1) / (len(rows) + 2), len(rows) + 2)
        for rows in (low, high)
    ]
    error = math.sqrt(sum(share * (1 - share) / count for share, count in shares))
    return (shares[0][0] - shares[1][0]) / error


def _loops(kept: Sequence[Judged], base: Scores) -> float:
    if not kept or not base.persona:
        return math.nan
    most = float(np.percentile([row.word_repetition for row in base.persona], 95)) + LOOP_MARGIN
    least = float(np.percentile([row.distinct_2 for row in base.persona], 5)) - LOOP_MARGIN
    if not known(most, least):
        return math.nan
    found = [row.verdict.word_repetition > most or row.verdict.distinct_2 < least for row in kept]
    return sum(found) / len(found)


def _moving(sweep: Sweep | None) -> float:
    points = sweep.points if sweep else ()
    doses = [point.dose for point in points if not point.control and point.summary.gain.low > 0]
    return min(doses, default=math.nan)


def _mean(values: Sequence[float]) -> float:
    """NaN when there are none, or one of them is."""
    return sum(values) / len(values) if values else math.nan


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values and known(*values) else math.nan


CHECK: Check[Filtering] = Check(
    "check 2",
    (
        Rule(
            "separates",
            lambda e: e.drop >= FLAT_SURVIVAL and e.fall >= CLEAR and e.rise >= RISE,
            "The filter follows the dose: {e.course}; kept text: {e.taught}.",
            "Read the borderline samples in the report; if the kept ones read well, go on to heal.",
            tone="good",
        ),
        Rule(
            "inert",
            lambda e: abs(e.drop) < FLAT_SURVIVAL,
            "Survival does not follow the dose: {e.course}.",
            "Lower --dose.coherence, or raise --dose.start, until text breaks; if broken text is "
            "kept at every dose, lower --filter.tail-perplexity and the repetition limits.",
        ),
        Rule(
            "starved",
            lambda e: not e.fed,
            "Too few completions survived: {e.kept} at the last dose tried, {e.multiplier}, of "
            "{e.drawn} drawn in all; the commonest reason was {e.top_reason} ({e.top_count}).",
            "Raise --dose.coherence, lower --dose.start, or allow more --dose.walks and "
            "--dose.batches; {e.remedy}",
            over=("separates", "inert", "keeps base", "leaks loops", "narration dominates"),
        ),
        Rule(
            "keeps base",
            lambda e: e.base_like,
            "What is kept is as the base writes: {e.taught}; an undo is coming.",
            "Loosen --filter.tail-perplexity, lower --dose.coherence or raise --dose.start, or "
            "lower --dose.target so that the walk stops at a higher dose.",
            over=("separates", "inert"),
        ),
        Rule(
            "leaks loops",
            lambda e: e.kept_loops >= LEAK,
            "{e.kept_loops:%} of the {e.kept} kept completions repeat themselves far more than the "
            "base does (repeated trigrams {e.kept_repetition}, distinct bigrams "
            "{e.kept_distinct_2}).",
            "Lower --filter.word-repetition and --filter.char-repetition, or --dose.start.",
            over=("separates", "inert"),
        ),
        Rule(
            "narration dominates",
            lambda e: e.narrating_dropped >= DOMINATES and e.narrating >= MANY,
            "{e.narrating:%} of the {e.drawn} completions were dropped for narrating the persona, "
            "{e.narrating_dropped:%} of all that were dropped.",
            "Write the persona's poles as acts and not as a self-description, use "
            "--vector.contrast neutral, or lower --dose.start.",
            over=("separates", "inert"),
        ),
    ),
)
