"""The loop's outcomes, from the second healed round on: does the trait compound, and at what price?

In: the records of the rounds so far, whose findings of check 2 hold what was kept. A round is
compared with the healed round before it; growth means that its interval lies above that value.
"""

import math
from collections.abc import Sequence

from steerheal.checks.rules import (
    Check,
    Evidence,
    Rule,
    backwards,
    coherent,
    incoherent,
    known,
    over,
)
from steerheal.config import HealSettings
from steerheal.measure.readings.table import played
from steerheal.numbers import written
from steerheal.personas import Axis
from steerheal.records import BREAKDOWN, Reading, RoundRecord, Summary

WANDERS = 0.5
"""cos(v_r, v₀) below which a round steers somewhere else."""
WORSE = 0.1
"""Change in the kept text's distinct bigrams, or in its share of loop-like texts, since the first
round that is a decay: as far as check 2 lets one text stray from the base."""


class Course(Evidence):
    """What the loop's rules look at."""

    rounds: int
    """Healed rounds."""
    foundation: str
    sign: int
    target: Reading
    """Change of the target foundation's nats from base in the last round."""
    gain: Reading
    """Change of the trait from base in the last round."""
    gain_before: Reading
    """The same in the round before."""
    read_by: str
    """What the trait is read by."""
    unit: str
    coherence: float
    coherence_high: float = math.nan
    """The upper end of its interval, where it is a share of few answers."""
    perplexity: float
    """Over the base's."""
    kl: float
    """Spent: the rounds' sum or the student's own to the base, the larger, nats per token."""
    cosine: float
    distinct_fall: float
    """Fall of the kept text's distinct bigrams since the first round."""
    loops_rise: float
    """Rise of its share of loop-like texts."""
    kept: int
    leash: bool
    """Whether a barrier holds the rounds to the base."""

    @property
    def at_best(self) -> float:
        """Coherence as far as it is not shown to be lower."""
        return self.coherence_high if known(self.coherence_high) else self.coherence

    @property
    def grows(self) -> bool:
        """Whether the last round's trait lies above the one before."""
        return self.gain.low > self.gain_before.value

    @property
    def stands(self) -> bool:
        """Whether it is known not to."""
        return self.gain.low <= self.gain_before.value

    @property
    def trait(self) -> str:
        """The trait of the last two rounds."""
        return written("Δ {e.read_by} {e.gain_before.value:+} → {e.gain:+} {e.unit}", self)

    @property
    def line(self) -> str:
        """Where the cumulative KL stands against the published line."""
        if not known(self.kl):
            return "KL spent unknown"
        side = "past" if self.kl >= BREAKDOWN else "below"
        at = f"{side} the {BREAKDOWN:g} at which unhealed steering breaks down"
        return written("KL spent {e.kl} nats/token, ", self) + at

    @property
    def caveat(self) -> str:
        """The target foundation, when it moved against the axis."""
        return backwards(self.foundation, self.target, self.sign)

    @property
    def plainly(self) -> str:
        """Trait, coherence and KL."""
        return written(
            "{e.trait} over the last two of {e.rounds} healed rounds, coherence {e.coherence}, "
            "{e.line}",
            self,
        )


def evidence(
    rounds: Sequence[RoundRecord], settings: HealSettings, axis: Axis, base: Summary
) -> Course | None:
    """The loop's evidence; None while fewer than two rounds are healed: nothing to say yet.

    Args:
        rounds: All rounds so far.
        settings: The barrier and its reference.
        axis: The target foundation.
        base: What perplexity is held against.
    """
    done = [(row, row.healed) for row in rounds if row.healed is not None]
    if len(done) < 2:
        return None
    (first, _), (_, before), (last, now) = done[0], done[-2], done[-1]
    trait = played(now, "trait")
    return Course(
        rounds=len(done),
        foundation=axis.foundation,
        sign=axis.sign,
        target=now.delta_nats.get(axis.foundation, Reading.unknown("not read")),
        gain=now.gain,
        gain_before=before.gain,
        read_by=trait.title,
        unit=trait.difference_unit,
        coherence=now.coherence,
        coherence_high=now.coherence_high,
        perplexity=over(now.perplexity, base.perplexity),
        kl=last.kl_spent,
        cosine=last.direction_cosine,
        distinct_fall=_kept(first, "kept_distinct_2") - _kept(last, "kept_distinct_2"),
        loops_rise=_kept(last, "kept_loops") - _kept(first, "kept_loops"),
        kept=last.kept,
        leash=settings.reference == "base" and settings.barred_fit and settings.lam > 0,
    )


def _kept(row: RoundRecord, name: str) -> float:
    """A number of the round's kept text, as check 2 found it; NaN when it did not."""
    found = [item.numbers for item in row.findings if item.check == "check 2"]
    return found[-1].get(name, math.nan) if found else math.nan


CHECK: Check[Course] = Check(
    "loop",
    (
        Rule(
            "compounding",
            lambda e: e.grows and coherent(e.at_best, e.perplexity),
            "The trait grows: {e.trait} at coherence {e.coherence}; {e.line}.",
            "Go on: --rounds says how far.",
            tone="good",
        ),
        Rule(
            "saturated",
            lambda e: e.kl >= BREAKDOWN and e.stands,
            "The trait no longer grows and the KL budget is spent: {e.trait}; {e.line}.",
            "Use the best round, or spend less in a round: a lower --gate, fewer --heal.epochs.",
        ),
        Rule(
            "collapse",
            lambda e: (
                incoherent(e.at_best, e.perplexity)
                and (e.distinct_fall >= WORSE or e.loops_rise >= WORSE)
            ),
            "Coherence falls to {e.coherence} (perplexity ×{e.perplexity}) while kept text decays "
            "though it passes the filter: distinct bigrams {e.distinct_fall} lower than in the "
            "first round, {e.loops_rise:%} more loop-like texts.",
            "Lower --filter.word-repetition and --filter.char-repetition, raise --dose.coherence "
            "or lower --dose.start; go back to the best round.",
            over=("saturated", "direction wander"),
        ),
        Rule(
            "direction wander",
            lambda e: e.cosine < WANDERS,
            "This round's vector has cosine {e.cosine} with the first round's, below "
            f"{WANDERS:g}: it steers elsewhere.",
            "Average more --vector.contexts, fold with a lower --gate, or stop before this round.",
            over=("compounding", "saturated"),
        ),
        Rule(
            "history erasure",
            lambda e: e.leash and e.gain.high < e.gain_before.value,
            "A barrier held to the base pushes the earlier rounds' trait back: {e.trait}.",
            "Take --heal.reference prev, or loosen λ as the history grows (--heal.lam-power -1).",
            over=("saturated",),
        ),
    ),
)
