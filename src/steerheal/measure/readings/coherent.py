"""Readings of the free answers' coherence: by the filter's rules, and by what the base expects."""

import math
from collections.abc import Sequence

from steerheal.measure.readings.table import Asking, Entry, share_of
from steerheal.records import PersonaRow, UnitRow

IMPLAUSIBLE = -5.0
"""ln p₀ below which the base finds a token implausible: within a dose it tells incoherent answers
with an area of 0.76 (lab/evidence)."""


def _coherent(asking: Asking) -> Sequence[UnitRow]:
    if asking.rules is None:
        return ()
    rows = asking.scores.persona
    return [
        UnitRow(id=row.completion.prompt, value=float(not why), parts=dict.fromkeys(why, 1.0))
        for row, why in zip(rows, asking.rules.broken(rows), strict=True)
    ]


def _implausible(asking: Asking) -> Sequence[UnitRow]:
    return [UnitRow(id=row.completion.prompt, value=_share(row)) for row in asking.scores.persona]


def _share(row: PersonaRow) -> float:
    """Of an answer's tokens; one that broke off is all implausible, an empty one says nothing."""
    if row.completion.broken:
        return 1.0
    logs = row.logprobs
    return sum(value < IMPLAUSIBLE for value in logs) / len(logs) if logs else math.nan


ENTRIES = (
    Entry(
        name="answers_coherent",
        title="coherent free answers",
        kind="coherence",
        unit="share",
        damage=-1,
        brief=True,
        rows=_coherent,
        swept=True,
        meaning="free answers that pass the filter's rules of coherence",
        of=lambda row: row.value,
        **share_of("answers_coherent", lambda row: row.value),
    ),
    Entry(
        name="answers_implausible",
        title="implausible tokens of free answers",
        kind="coherence",
        unit="share",
        of=lambda row: row.value,
        damage=1,
        brief=True,
        rows=_implausible,
        swept=True,
        meaning="tokens that the base gives less than e⁻⁵, mean over answers",
    ),
)
