"""What a judge of another model made of a run's answers, and what that is worth."""

import math

from steerheal.measure.readings.table import listed
from steerheal.numbers import number
from steerheal.records import RoundRecord, RunRecord


def judged(record: RunRecord, row: RoundRecord) -> str:
    """The shares of answers that make sense to it, in one sentence; empty where nobody judged."""
    found = record.judge
    if found is None:
        return ""
    states = [("base", record.base), ("steered", row.steered), ("healed", row.healed)]
    blind = record.sight.blind if record.sight else ()
    entries = [
        entry
        for entry in listed(record.base.values if record.base else ())
        if entry.judged and entry.unit == "share"
    ]
    read = [
        (name, state.values[entry.name].value)
        for name, state in states
        for entry in entries
        if state is not None and entry.name in state.values
    ]
    shares = ", ".join(f"{name} {number(value)}" for name, value in read if math.isfinite(value))
    worth = "read after the last decision"
    if not found.admitted:
        worth = "not admitted, and used by nothing"
    elif any(entry.name in blind for entry in entries):
        worth = "blind here, and used by nothing"
    return (
        f"Answers that make sense to the judge {found.judge} (AUC {found.auc:.2f} within dose, "
        f"{worth}): {shares or 'none was read'}."
    )
