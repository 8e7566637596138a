"""How a check reads its evidence: named rules, explicit priorities, sentences with numbers.

In: a check's evidence, numbers that are a pure function of saved records. Out: a `Finding`. A rule
is written so that a NaN makes it silent: comparisons with NaN are false, and a negated one asks
whether the number is known. When no rule holds, or several of which none goes before the others,
the outcome is `ambiguous`. It does not know what any rule is about.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from steerheal.numbers import written
from steerheal.records import Finding, Reading, Record

AMBIGUOUS = "ambiguous"
COHERENT = 0.95
"""Least answer mass, as a share of the base's, of a coherent state: the loop's default floor."""
BACK = 0.99
"""Answer mass within 1 % of the base's: nothing is lost."""
BROKEN = 4.0
"""Perplexity of free answers, in multiples of the base's, above which a state is not coherent:
where the default filter drops. Answer mass alone stays high while some vectors garble text."""
Tone = Literal["good", "bad", "unknown"]


class Evidence(Record):
    """The numbers that a check's rules look at."""

    @property
    def plainly(self) -> str:
        """The main numbers in a sentence's part, said when no rule holds."""
        raise NotImplementedError

    @property
    def caveat(self) -> str:
        """What a good outcome must not hide, as a sentence; empty when there is nothing."""
        return ""

    def numbers(self) -> dict[str, float]:
        """Every number by name; of a reading its value."""
        found: dict[str, float] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, Reading):
                found[name] = value.value
            elif isinstance(value, int | float) and not isinstance(value, bool):
                found[name] = float(value)
        return found


E = TypeVar("E", bound=Evidence)


@dataclass(frozen=True)
class Rule(Generic[E]):
    """One outcome: when it holds, how it is said, and what to try."""

    name: str
    holds: Callable[[E], bool]
    words: str
    """Template over the evidence `e`; `:+` writes a sign, `:%` a share."""
    advice: str
    """The same, naming settings."""
    tone: Tone = "bad"
    """Whether it is what one hopes for."""
    over: tuple[str, ...] = ()
    """Outcomes it goes before when both hold; they are said after it."""


@dataclass(frozen=True)
class Check(Generic[E]):
    """A question and the outcomes it can have."""

    name: Literal["check 1", "check 2", "check 3", "loop"]
    rules: tuple[Rule[E], ...]

    def seen(self, evidence: E) -> Finding:
        """The outcome that the evidence shows."""
        holding = [rule for rule in self.rules if rule.holds(evidence)]
        second = {name for rule in holding for name in rule.over}
        first = [rule for rule in holding if rule.name not in second]
        if len(first) != 1:
            return self._ambiguous(evidence, first)
        only = first[0]
        also = [rule for rule in holding if rule is not only]
        words = [written(only.words, evidence)]
        words += [f"Also {rule.name}: {written(rule.words, evidence)}" for rule in also]
        good = only.tone == "good"
        if good and evidence.caveat:
            words.append(evidence.caveat)
        return Finding(
            check=self.name,
            outcome=only.name,
            words=" ".join(words),
            advice=written(only.advice, evidence),
            tone="unknown" if good and evidence.caveat else only.tone,
            numbers=evidence.numbers(),
            candidates=tuple(rule.name for rule in holding) if also else (),
        )

    def _ambiguous(self, evidence: E, first: Sequence[Rule[E]]) -> Finding:
        said = " ".join(f"{rule.name}: {written(rule.words, evidence)}" for rule in first)
        advice = " ".join(f"If {rule.name}: {written(rule.advice, evidence)}" for rule in first)
        return Finding(
            check=self.name,
            outcome=AMBIGUOUS,
            words=f"Several outcomes fit. {said}"
            if first
            else f"No outcome fits: {evidence.plainly}.",
            advice=advice
            or "Read the samples in the report; more of --measure.prompts and "
            "--measure.per-foundation narrow the intervals.",
            numbers=evidence.numbers(),
            candidates=tuple(rule.name for rule in first),
        )


def known(*values: float) -> bool:
    """Whether every number is one."""
    return not any(math.isnan(value) for value in values)


def coherent(coherence: float, perplexity: float) -> bool:
    """Answer mass at the floor or above, and text that is not garbled.

    Args:
        coherence: Answer mass over the base's.
        perplexity: Of free answers, over the base's.
    """
    return math.isfinite(coherence) and coherence >= COHERENT and perplexity <= BROKEN


def incoherent(coherence: float, perplexity: float) -> bool:
    """Known to be below the floor, or known to be garbled; arguments as for `coherent`."""
    return coherence < COHERENT or perplexity > BROKEN


def right_way(reading: Reading, sign: int) -> bool:
    """Whether the whole interval lies on the meant side of 0."""
    return reading.moved and reading.value * sign > 0


def wrong_way(reading: Reading, sign: int) -> bool:
    """Whether the whole interval lies on the other side of 0."""
    return reading.moved and reading.value * sign < 0


def backwards(foundation: str, reading: Reading, sign: int) -> str:
    """A sentence about a foundation that moved against the axis; empty when it did not."""
    if not wrong_way(reading, sign):
        return ""
    meant = "more" if sign > 0 else "less"
    return (
        f"But {foundation} moved the wrong way, {written('{e:+}', reading)} nats where "
        f"{meant} was meant: the vignettes do not show the trait."
    )


def over(value: float, base: float) -> float:
    """value / base; NaN where there is nothing to divide by."""
    return value / base if base else math.nan


def named(readings: Mapping[str, Reading], units: Mapping[str, str]) -> str:
    """Readings in one phrase, each with its unit, and whether it has not moved."""
    parts = []
    for name, reading in readings.items():
        text = f"{name} {written('{e:+}', reading)}"
        known_one = known(reading.value)
        text += f" {units.get(name, 'nats')}" if known_one else ""
        parts.append(text + (" (not moved)" if known_one and not reading.moved else ""))
    return ", ".join(parts)
