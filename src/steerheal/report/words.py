"""Settings, readings and model text as words. No disk, no HTML.

Text that a model or a file may have written goes through `visible` before it reaches a terminal or
a page.
"""

import math
import unicodedata

from steerheal.measure.readings.table import Entry, free_trait, played
from steerheal.numbers import interval, number
from steerheal.records import OnTest, Reading, Readings, RoundRecord, RunRecord

JOINERS = frozenset("\u200c\u200d\u200e\u200f")
"""Format characters that scripts and emoji need."""


def visible(text: str) -> str:
    """The text with control and hidden format characters replaced by visible ones."""
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character in "\n\t" or character in JOINERS:
        return character
    kind, code = unicodedata.category(character), ord(character)
    if kind == "Cc" and code < 32:
        return chr(0x2400 + code)
    if code == 127:
        return "\N{SYMBOL FOR DELETE}"
    return "\N{REPLACEMENT CHARACTER}" if kind in ("Cc", "Cf", "Cs") else character


def one_line(text: str) -> str:
    """The first line that says something, made visible, without its full stop."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return visible(lines[0]).rstrip(".") if lines else ""


def change(read: Readings) -> str:
    """The change of the trait with its unit and interval."""
    return _changed(read.gain, played(read, "trait"))


def free_change(read: Readings) -> str:
    """The same of the trait as free answers have it, under its name."""
    entry = free_trait(read)
    return f"{entry.title} {_changed(read.free_gain, entry)}"


def _changed(reading: Reading, entry: Entry) -> str:
    unit = entry.difference_unit
    return f"{number(reading.value, signed=True)} {unit} {interval(reading)}".rstrip()


def trait_label(read: Readings | None) -> str:
    """What the trait is read by, and its unit."""
    entry = played(read or Readings(), "trait")
    return f"{entry.title} ({entry.unit})"


def setting(record: RunRecord, *path: str) -> object:
    """A setting of the run by its path; None when the record has none."""
    return at(record.config, *path)


def at(value: object, *path: str) -> object:
    """What stands at a place of settings or a persona; None where nothing does.

    They are typed, or as another version wrote them.
    """
    for name in path:
        value = value.get(name) if isinstance(value, dict) else getattr(value, name, None)
    return value


def coherence_title(read: Readings | None) -> str:
    """What coherence is read by, for people."""
    return "answer mass" if read is None or not read.heads else played(read, "coherence").title


def number_setting(record: RunRecord, *path: str) -> float:
    """A numeric setting; NaN when the record has none."""
    value = setting(record, *path)
    return float(value) if isinstance(value, int | float) else math.nan


def persona_name(record: RunRecord) -> str:
    """The persona's name; it says when its poles are swapped."""
    return one_line(str(at(record.persona, "name") or "the trait"))


def tested(record: RunRecord, row: RoundRecord) -> OnTest | None:
    """The round's reading on prompts that chose nothing; None where there is none."""
    found = record.test
    return found if found is not None and found.round == row.round else None


def trait_read(record: RunRecord, row: RoundRecord) -> Readings:
    """Where the round's trait is read: on prompts that chose nothing, where they have it."""
    assert row.healed is not None
    found = tested(record, row)
    return row.healed if found is None or found.led_by_foundation else found


def stand_ins(record: RunRecord, row: RoundRecord) -> str:
    """What plays trait and coherence where no forced choice reads them; empty where one does."""
    assert row.healed is not None
    if not record.instrument or row.healed.led_by_foundation:
        return ""
    return (
        f"The vignettes are read by {record.instrument} and not by a forced choice: "
        f"{played(row.healed, 'trait').title} stand in for the foundation as the trait, and "
        f"{coherence_title(row.healed)} for its answer mass."
    )


def chosen(record: RunRecord) -> RoundRecord | None:
    """The round to talk about: the best one, else the last that has a healed reading."""
    healed = [row for row in record.rounds if row.healed is not None]
    best = [row for row in healed if row.round == record.best]
    return (best or healed or [None])[-1]
