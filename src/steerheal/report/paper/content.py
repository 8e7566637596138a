"""What a paper holds, whichever record it is made from."""

import math
from collections.abc import Callable
from typing import NamedTuple

from matplotlib.figure import Figure

from steerheal.measure.readings.table import Entry
from steerheal.numbers import interval, number
from steerheal.records import Reading
from steerheal.report.paper.prose import Prose
from steerheal.report.table import Table
from steerheal.report.words import one_line


class Picture(NamedTuple):
    """A figure and what stands under it."""

    name: str
    draw: Callable[[], Figure]
    caption: str


class Content(NamedTuple):
    """All of a paper but its layout."""

    title: str
    abstract: str
    introduction: list[Prose]
    method: list[Prose]
    equation: bool
    """Whether the loss stands under the method: something is trained with these settings."""
    findings: list[str]
    """What the results begin with, a paragraph each."""
    told: list[str]
    """What every difference says, one by one."""
    limitations: list[str]
    pictures: list[Picture]
    tables: dict[str, Table]
    """By the name of their files."""


def amount(reading: Reading, unit: str) -> str:
    """A change with its unit and interval."""
    return f"{number(reading.value, signed=True)} {unit} {interval(reading)}".rstrip()


def told(more: str, less: str, entry: Entry, reading: Reading) -> str:
    """What a paired difference, `more` less `less`, says of two states, by its interval alone."""
    what = f"{more} less {less} in {entry.title}"
    if math.isnan(reading.value):
        return f"{what} is unknown: {one_line(reading.reason) or 'no reason was recorded'}."
    said = f"{what} is {amount(reading, entry.difference_unit)}"
    if math.isnan(reading.low) or math.isnan(reading.high):
        return f"{said}; without an interval nothing can be told."
    if not reading.moved:
        return f"{said}: the two cannot be told apart."
    return f"{said}: {more if reading.low > 0 else less} has more."
