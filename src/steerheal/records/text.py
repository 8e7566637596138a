"""What was written, and what the filter made of it: completions, verdicts, the harvest."""

import math
from typing import Literal

from steerheal.records.base import Record

Thought = Literal["", "open", "closed"]
"""What a text holds: no thought, one with no answer after it, or one with an answer after it."""


class Completion(Record):
    """What the model wrote to one prompt."""

    prompt: str
    text: str
    tokens: tuple[int, ...]
    """Token ids, the end-of-turn token included when the model wrote it."""
    dose: float
    """Coefficient on the vector while it was written; 0 is unsteered."""
    seed: int
    ended: bool
    """True: the model ended its turn; False: cut at the token limit."""
    rewinds: int = 0
    """How often backtracking took tokens back; those are not in `tokens`."""
    doses: tuple[float, ...] = ()
    """Dose of every token, where it was not the same for all."""
    broken: bool = False
    """True: the logits after its last token were not finite, so that nothing could follow."""
    thought: Thought = ""
    """Whether it holds a thought that the model wrote before its answer, or instead of one."""


class Calibration(Record):
    """The filter's limits, set on the base's own unsteered text."""

    texts: int
    """Base completions behind it."""
    classes: dict[str, float]
    """Share of each class of characters in them."""
    medians: dict[str, float]
    """Median of every feature in them."""
    spreads: dict[str, float]
    """Standard deviation of every feature in them."""
    limits: dict[str, float]
    """Limit per calibrated rule; infinite where the rule is off."""
    dropped: dict[str, float]
    """Share of these same texts that each rule drops, and all of them together: fresh text, which
    the limits do not know, loses more."""
    fresh: dict[str, float] = {}
    """What fresh text of the base loses: every text judged by limits that were set without it."""
    expected: dict[str, float] = {}
    """What each calibrated rule is expected to drop of fresh text."""
    too_few: dict[str, float] = {}
    """The rules of them for which the texts are too few: they drop more than they were set to."""

    @property
    def survival(self) -> float:
        """Share of the base's own fresh text that is kept, the trait rule apart; 1 if unread."""
        return 1 - self.fresh.get("together", 0.0)


class Calibrated(Record):
    """The filter's limits, and what of the text behind them passes them, the trait rule apart."""

    limits: Calibration
    coherent: tuple[Completion, ...]


class Unsteered(Record):
    """What a round's student wrote by itself to the prompts of the kept text, in their order."""

    texts: tuple[Completion, ...]
    reused: int
    """Those of them that the filter was calibrated on."""
    drawn: int
    """Answers drawn for the others."""
    unfiltered: int
    """Texts that stand although no draw passed the filter."""


class Verdict(Record):
    """Whether a completion is kept, why not, and every number the rules looked at."""

    kept: bool
    reasons: tuple[str, ...]
    tail_perplexity: float
    word_repetition: float
    char_repetition: float
    words: int
    compression: float = math.nan
    """Compressed over plain bytes: loops compress well."""
    distinct_2: float = math.nan
    """Distinct word bigrams over all of them."""
    drift: float = math.nan
    """Share of characters in classes that the base hardly writes in."""
    kl: float = math.nan
    """Mean over tokens of KL(steered‖base), nats per token: how far from base-like it is."""
    kl_spike: float = math.nan
    """Largest mean of that KL over a few tokens in a row."""
    similarity: float = math.nan
    """Overlap with the persona's own text."""
    logodds: float = math.nan
    """The completion's own persona log-odds under the base, nats per token."""
    score: float = math.nan
    """The score of incoherence: weighted spreads of the features from the base's own text."""


class Judged(Record):
    """A completion and its verdict."""

    completion: Completion
    verdict: Verdict
    batch: str
    """Where it was drawn: `walk-0`, `walk-1`, …, `top-up-1`, …"""
    passed_over: bool = False
    """Kept, and not trained on: another draw of the same prompt was chosen."""


class WalkStep(Record):
    """One dose that walk-C tried."""

    multiplier: float
    drawn: int
    kept: int

    @property
    def survival(self) -> float:
        """Share of the drawn completions that the filter kept."""
        return self.kept / self.drawn


class Harvest(Record):
    """A round's training data: what was drawn at which doses, and what survived."""

    outcome: Literal["fed", "starved"]
    multiplier: float
    """The accepted dose, or the lowest one tried when nothing was accepted."""
    needed: float = math.nan
    """Share of a batch that had to survive for its dose to be accepted."""
    walk: tuple[WalkStep, ...]
    judged: tuple[Judged, ...]
    """Everything drawn; only kept completions of the accepted dose that are not passed over are
    trained on."""
    perplexity_limit: float
    """Highest tail perplexity the filter let through."""
    calibration: Calibration | None = None
    """The filter's limits, and how much of the base's own text they drop."""

    def kept(self, want: int | None = None) -> list[Completion]:
        """What is trained on: of the kept ones of the accepted dose those that are not passed over.

        Args:
            want: At most so many.
        """
        accepted = f"walk-{len(self.walk) - 1}"
        good = [
            row.completion
            for row in self.judged
            if row.verdict.kept
            and not row.passed_over
            and (row.batch == accepted or row.batch.startswith("top-up"))
        ]
        return good[:want]

    @property
    def passed_over(self) -> int:
        """Kept completions that another draw of the same prompt was preferred to."""
        return sum(row.passed_over for row in self.judged)

    def reasons(self) -> dict[str, int]:
        """How often each reason dropped a completion."""
        counts: dict[str, int] = {}
        for row in self.judged:
            for reason in row.verdict.reasons:
                counts[reason] = counts.get(reason, 0) + 1
        return counts
