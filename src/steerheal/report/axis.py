"""The persona's axis in words: what its target foundation did, against what is intended."""

import math

from steerheal.measure.readings.table import listed
from steerheal.numbers import interval, number
from steerheal.records import FOUNDATIONS, Reading, RunRecord, Summary
from steerheal.report.words import at, one_line


def foundation(record: RunRecord) -> str:
    """The foundation the persona's axis names; empty when it names none."""
    name = at(record.persona, "axis", "foundation")
    return name if isinstance(name, str) and name in FOUNDATIONS else ""


def sign(record: RunRecord) -> int:
    """+1 where the persona raises its foundation, -1 where it lowers it, 0 when it does not say."""
    value = at(record.persona, "axis", "sign")
    return 1 if value == 1 else -1 if value == -1 else 0


def off_targets(record: RunRecord) -> list[str]:
    """The foundations that should stay, in the persona's order."""
    names = at(record.persona, "axis", "off_target")
    held = names if isinstance(names, list | tuple) else ()
    return [name for name in held if name in FOUNDATIONS]


def backwards(record: RunRecord, healed: Summary) -> bool:
    """Whether the target foundation moved beyond its interval, against what is intended."""
    delta = healed.delta_nats.get(foundation(record))
    return delta is not None and delta.moved and sign(record) * delta.value < 0


def move(record: RunRecord, healed: Summary) -> str:
    """What the target foundation did; empty when the persona names none."""
    name = foundation(record)
    if not name:
        return ""
    delta = healed.delta_nats.get(name)
    if delta is None:
        return f"its target foundation {name} was not read"
    if math.isnan(delta.value):
        return f"its target foundation {name} could not be read ({_reason(delta)})"
    return f"its target foundation {name} {nats(delta)} ({_judged(record, delta)})"


def _judged(record: RunRecord, delta: Reading) -> str:
    aim = {1: "up", -1: "down", 0: ""}[sign(record)]
    if not delta.moved:
        known = not (math.isnan(delta.low) or math.isnan(delta.high))
        said = "not shown to have moved" if known else "without an interval"
        return f"{said}; {aim} is intended" if aim else said
    if not aim:
        return "moved; the persona intends no direction"
    right = sign(record) * delta.value > 0
    return f"{aim}, as intended" if right else f"the wrong way: {aim} is intended"


def off_target_moves(record: RunRecord, healed: Summary) -> list[str]:
    """What every off-target foundation did."""
    found = []
    for name in off_targets(record):
        delta = healed.delta_nats.get(name)
        if delta is not None:
            moved = "" if delta.moved else " (not moved)"
            found.append(f"off-target {name} {nats(delta)}{moved}")
    return found


def selective(healed: Summary) -> list[str]:
    """On-target, off-target and their difference, as the table of readings has them."""
    entries = [entry for entry in listed(healed.changes) if entry.kind == "trait"]
    return [
        f"{entry.title} {nats(healed.changes[entry.name])}"
        for entry in entries
        if entry.unit == "nats"
    ]


def nats(delta: Reading) -> str:
    """A change in nats with its interval."""
    return f"{number(delta.value, signed=True)} nats {interval(delta)}".rstrip()


def _reason(delta: Reading) -> str:
    return one_line(delta.reason) or "no reason was recorded"
