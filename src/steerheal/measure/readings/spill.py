"""How far a state is from the base on unrelated prompts, where it should be the base: spill."""

import math
from collections.abc import Sequence

from steerheal.measure.readings.table import Asking, Entry
from steerheal.prompts import control_held_out
from steerheal.records import UnitRow

LEFT = "KL(base‖state)"


def _rows(asking: Asking) -> Sequence[UnitRow]:
    asked = control_held_out()[: asking.measure.control_prompts]
    if not asked:
        return ()
    answers = asking.base_answers(asked, asking.measure.control_tokens)
    said = [answer for answer in answers if answer.tokens]
    return [
        UnitRow(id=answer.prompt, value=there, parts={LEFT: back})
        for answer, (there, back) in zip(said, asking.apart(said), strict=True)
    ]


ENTRIES = (
    Entry(
        name="control_spill",
        title="spill",
        kind="guard",
        unit="nats/token",
        of=lambda row: row.value,
        damage=1,
        brief=True,
        rows=_rows,
        meaning="KL(state‖base) on the base's own answers to unrelated prompts",
    ),
    Entry(
        name="control_left",
        title="KL from the base",
        kind="guard",
        unit="nats/token",
        needs=("control_spill",),
        of=lambda row: row.parts.get(LEFT, math.nan),
        damage=1,
        meaning="KL(base‖state) on the same answers: what the base would say and the state would "
        "not",
    ),
)
