"""Free answers as a judge of another model sees them: rows that `--judge` adds.

What a judge that is not admitted says of their sense is a guard, which no headline, floor or check
looks at.
"""

import math
from collections.abc import Sequence

from steerheal.measure.readings.table import Entry, share_of
from steerheal.records import Completion, Record, Scores, UnitRow

SENSE, UNSURE, FIT = "answers_sense", "answers_sense_unsure", "answers_fit"
TRAIT = "trait_judged"

COHERENT = 0.5
"""P(yes) from which on a reply counts as coherent."""


class JudgeRow(Record):
    """One reply as the judge sees it."""

    yes: tuple[float, ...]
    """P(yes) per wording."""
    fit: float
    """Nats per token that the prompt adds to the reply; NaN for an empty reply."""
    trait: float = math.nan
    """Nats per token by which it is likelier under the positive pole than under the negative; NaN
    for an empty reply, or where nobody asked."""

    @property
    def mean(self) -> float:
        """P(yes) over the wordings."""
        return math.fsum(self.yes) / len(self.yes)


class Judgements(Record):
    """Several of them, in the order in which they were asked for."""

    rows: tuple[JudgeRow, ...]


def with_judged(scores: Scores, rows: Sequence[JudgeRow], *, admitted: bool) -> Scores:
    """The scores with what a judge made of their free answers, in the order of these."""
    said = [row.completion for row in scores.persona]
    return scores.model_copy(update={"own": scores.own | unit_rows(said, rows, admitted=admitted)})


def unit_rows(
    said: Sequence[Completion], rows: Sequence[JudgeRow], *, admitted: bool
) -> dict[str, tuple[UnitRow, ...]]:
    """What a judge made of answers, as the rows of its readings."""
    both = list(zip(said, rows, strict=True))
    return {
        SENSE if admitted else UNSURE: tuple(_row(one, row, row.mean) for one, row in both),
        FIT: tuple(_row(one, row, row.fit) for one, row in both),
        TRAIT: tuple(_row(one, row, row.trait) for one, row in both),
    }


def _row(answer: Completion, row: JudgeRow, value: float) -> UnitRow:
    parts = {f"wording {i + 1}": yes for i, yes in enumerate(row.yes)}
    return UnitRow(id=answer.prompt, value=value, parts=parts)


def _sense(row: UnitRow) -> float:
    return float(row.value >= COHERENT)


ENTRIES = (
    Entry(
        name=TRAIT,
        title="trait as the judge reads it",
        kind="trait",
        unit="nats/token",
        judged=True,
        brief=True,
        meaning="log-odds of the answers under held-out paraphrases of the poles, by another model "
        "that need not be admitted: it shares the wording with the base, and not the reader",
        of=lambda row: row.value,
    ),
    Entry(
        name=SENSE,
        title="answers that make sense to the judge",
        kind="coherence",
        unit="share",
        judged=True,
        damage=-1,
        brief=True,
        meaning="free answers of which an admitted judge says that they make sense",
        of=_sense,
        **share_of(SENSE, _sense),
    ),
    Entry(
        name=UNSURE,
        title="answers that make sense to a judge that is not admitted",
        kind="guard",
        unit="share",
        judged=True,
        damage=-1,
        meaning="shown and not used: this judge does not tell labelled replies well enough",
        of=_sense,
        **share_of(UNSURE, _sense),
    ),
    Entry(
        name=FIT,
        title="what the prompt adds to its answer, by the judge",
        kind="guard",
        unit="nats/token",
        judged=True,
        damage=-1,
        meaning="how much likelier the judge finds an answer with its prompt than without",
        of=lambda row: row.value,
    ),
)
