"""Settings, readings and model text as words. No disk, no HTML.

Text that a model or a file may have written goes through `visible` before it reaches a terminal or
a page.
"""

import math
import unicodedata

from steerheal.measure.readings.table import listed
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


def change(reading: Reading) -> str:
    """A change of the trait with its unit and interval."""
    return f"{number(reading.value, signed=True)} nats/token {interval(reading)}".rstrip()


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
    name = "" if read is None else read.heads.get("coherence", "")
    return listed([name])[0].title if name else "answer mass"


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


def chosen(record: RunRecord) -> RoundRecord | None:
    """The round to talk about: the best one, else the last that has a healed reading."""
    healed = [row for row in record.rounds if row.healed is not None]
    best = [row for row in healed if row.round == record.best]
    return (best or healed or [None])[-1]
