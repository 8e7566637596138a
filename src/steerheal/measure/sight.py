"""Which readings of coherence see damage on this model, and what coherence is then read by.

A reading that shows no damage beyond its interval at the largest dose of a sweep, nor under a
random vector of that dose's KL, is blind here: that it stays at the base's says nothing. Intervals
are as wide as it takes to hold at both together. What coherence is read by in the whole run, in
headline, floor, checks and picture, is the instrument's own answer mass where it sees, and else, of
the shares that see, the one that lost most of the base's.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

from steerheal.measure.readings import table
from steerheal.measure.readings.canary import price
from steerheal.measure.readings.table import Entry
from steerheal.measure.stats import widened
from steerheal.numbers import number
from steerheal.records import DosePoint, Readings, Sight, Summary, Sweep

R = TypeVar("R", bound=Readings)


def sight(sweep: Sweep) -> Sight | None:
    """What the sweep's largest dose, and its random vector, show; None without a dose."""
    points = _judges(sweep)
    if not points:
        return None
    asked = [
        entry
        for entry in table.entries()
        if entry.kind == "coherence"
        and entry.damage
        and entry.part != "cost"
        and any(entry.name in point.summary.changes for point in points)
    ]
    sees = [entry for entry in asked if any(_falls(entry, point, len(points)) for point in points)]
    heads = [entry for entry in sees if entry.heads]
    head = min(heads, key=lambda entry: (not entry.under, _left(entry, points)), default=None)
    return Sight(
        dose=points[0].dose,
        sees=tuple(entry.name for entry in sees),
        blind=tuple(entry.name for entry in asked if entry not in sees),
        head=head.name if head else "",
    )


def _judges(sweep: Sweep) -> list[DosePoint]:
    """The largest dose, and the random vector that was made for it."""
    doses = [point for point in sweep.points if not point.control]
    if not doses:
        return []
    largest = max(doses, key=lambda point: point.dose)
    return [largest, *(p for p in sweep.points if p.control and p.dose == largest.dose)]


def _falls(entry: Entry, point: DosePoint, looks: int) -> bool:
    change = point.summary.changes.get(entry.name)
    return change is not None and entry.damaged(widened(change, looks))


def _left(entry: Entry, points: Sequence[DosePoint]) -> float:
    """Share of the base's that is left where a point shows damage, the dose before the random."""
    shown = [point for point in points if _falls(entry, point, len(points))]
    return led(shown[0].summary, entry.name).coherence


def led(summary: Summary, name: str) -> Summary:
    """The same state with coherence read by the reading of this name; empty leaves it as it is."""
    if not name or name not in summary.values or name not in summary.changes:
        return summary
    value, change = summary.values[name].value, summary.changes[name]
    whole = value - change.value
    share, high = (
        (value / whole, (whole + change.high) / whole) if whole > 0 else (math.nan, math.nan)
    )
    return headed(summary, name).model_copy(update={"coherence": share, "coherence_high": high})


def headed(read: R, name: str) -> R:
    """The same readings with coherence played by the reading of this name, and its cost."""
    if not name or name == read.heads.get("coherence"):
        return read
    led = read.model_copy(update={"heads": read.heads | {"coherence": name}})
    cost = led.heads.get("cost", "")
    if cost not in led.changes:
        return led
    found = price(led.mass_change, led.gain)
    return led.model_copy(update={"changes": led.changes | {cost: found}})


def led_sweep(sweep: Sweep, name: str) -> Sweep:
    """The same of every dose."""
    points = (p.model_copy(update={"summary": led(p.summary, name)}) for p in sweep.points)
    return sweep.model_copy(update={"points": tuple(points)})


def read_by(read: Readings) -> str:
    """Title of what coherence is read by, where that is not the canary."""
    entry = table.played(read, "coherence")
    return "" if entry == table.headed("coherence") else entry.title


def in_words(found: Sight, instrument: str = "") -> str:
    """One sentence: what coherence is read by, what else sees, and what is blind."""
    titles = {entry.name: entry.title for entry in table.entries()}
    blind = ", ".join(titles.get(name, name) for name in found.blind)
    sees = ", ".join(titles.get(name, name) for name in found.sees if name != found.head)
    dose = number(found.dose)
    end = f"; blind up to dose {dose}, and not used: {blind}" if blind else ""
    if not found.head:
        said = f"; {sees} moved" if sees else ""
        stands = table.headed("coherence", instrument).title
        return (
            f"No share of coherence is seen to fall up to dose {dose} or under a random vector of "
            f"its KL{said}, and {stands} stands in{end}."
        )
    also = f"; it falls in {sees} as well" if sees else ""
    own = table.headed("coherence", instrument)
    why = (
        f"which sees damage up to dose {dose}"
        if own.under and own.name == found.head
        else f"which lost most at dose {dose}"
    )
    return f"Coherence is read by {titles[found.head]}, {why}{also}{end}."
