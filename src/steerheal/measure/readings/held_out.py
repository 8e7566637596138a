"""The trait in words that made neither the vector nor the filter nor the choice of a round."""

from collections.abc import Sequence

from steerheal.measure.readings.table import Asking, Entry
from steerheal.records import UnitRow


def _rows(asking: Asking) -> Sequence[UnitRow]:
    pairs = asking.persona.pairs("held_out")[: asking.measure.held_out_pairs]
    if not pairs:
        return ()
    answers = [row.completion for row in asking.scores.persona]
    return [
        UnitRow(id=answer.prompt, value=sum(odds) / len(odds))
        for answer, odds in zip(answers, asking.trait(pairs), strict=True)
    ]


ENTRIES = (
    Entry(
        name="trait_held_out",
        title="trait in held-out words",
        kind="trait",
        unit="nats/token",
        of=lambda row: row.value,
        brief=True,
        rows=_rows,
        meaning="expected log-odds of the answers under paraphrases of the poles that were held "
        "out; beside it, the persona's log-odds are those of the words it was trained with",
    ),
)
