"""Trait against damage and KL, an arm a line from the base, and what sets arms apart: two figures.

Arms of one family share a colour of the page, and every arm has a mark of its own, so that none is
told by its colour alone.
"""

import math
from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steerheal.measure.readings.table import listed
from steerheal.records import Reading
from steerheal.records.comparing import ArmRecord, CompareRecord, Place
from steerheal.report.draw import (
    BLUE,
    CARD,
    GREEN,
    GREY,
    INK,
    RED,
    key,
    level,
    line,
    note,
    sheet,
    styled,
)

COLOURS = {"base": INK, "prompt": BLUE, "steering": RED, "weights": GREEN, "control": GREY}
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "d")
DASHES = ("-", "--", ":", "-.")
Read = Callable[[Place], Reading]
REACH = 3.0
"""How far the axis of differences goes, in the largest of them: an interval that goes on is cut."""


def figure(record: CompareRecord) -> Figure:
    """The two panels and their key."""
    drawn = _drawn(record)
    trait, damage = listed([record.settings.trait])[0], listed([record.settings.damage])[0]
    with styled():
        drawing, axes = sheet(4.6, 1, 2)
        across: tuple[tuple[str, Read], ...] = (
            (f"change of {damage.title}", lambda place: place.damage),
            ("KL to the base (nats/token)", lambda place: place.kl),
        )
        for panel, (label, x) in zip(axes, across, strict=True):
            _panel(panel, drawn, x)
            panel.set_xlabel(label)
            panel.locator_params(axis="x", nbins=5)
        axes[0].set_ylabel(f"change of the trait ({trait.difference_unit})")
        axes[0].set_title("at equal damage")
        axes[1].set_title("at equal KL")
        marks = [(arm.arm.name, line(*_style(arm, i))) for i, arm in enumerate(drawn)]
        key(drawing, [("base", line("", INK, "*")), *marks])
    return drawing


def contrasts(record: CompareRecord) -> Figure:
    """Every arm less ours, at equal damage and at equal KL, in the order of the arms."""
    drawn, ours = _drawn(record), record.settings.ours
    unit = listed([record.settings.trait])[0].difference_unit
    with styled():
        drawing, axes = sheet(1.1 + 0.26 * len(drawn), 1, 2)
        for panel, at in zip(axes, ("damage", "KL"), strict=True):
            level(panel, 0.0, vertical=True)
            _differences(panel, drawn, [_less(record, arm, at) for arm in drawn])
            panel.set_yticks(range(len(drawn)), [arm.arm.name for arm in drawn])
            panel.set_ylim(len(drawn) - 0.4, -0.6)
            panel.set_title(f"at equal {at}")
            panel.set_xlabel(f"trait less that of {ours}\n({unit})")
        axes[1].tick_params(labelleft=False)
    return drawing


def _drawn(record: CompareRecord) -> list[ArmRecord]:
    return [arm for arm in record.arms if arm.curve and arm.family != "base"]


def _less(record: CompareRecord, arm: ArmRecord, at: str) -> Reading | None:
    """The arm less ours; ours less itself is 0."""
    if arm.arm.name == record.settings.ours:
        return Reading(value=0.0)
    found = record.contrast(arm.arm.name, at)
    return found.reading if found else None


def _differences(axes: Axes, arms: list[ArmRecord], found: list[Reading | None]) -> None:
    known = [reading for reading in found if reading and math.isfinite(reading.value)]
    reach = REACH * max((abs(reading.value) for reading in known), default=0.0) or 1.0
    axes.set_xlim(-reach, reach)
    for place, (arm, reading) in enumerate(zip(arms, found, strict=True)):
        if reading is None or math.isnan(reading.value):
            continue
        _, colour, shape = _style(arm, place)
        if math.isfinite(reading.low):
            axes.hlines(place, reading.low, reading.high, color=colour, lw=1.4, zorder=3)
        axes.plot(reading.value, place, shape, color=colour, ms=8, mec=CARD, mew=0.7, zorder=4)
    if not known:
        note(axes, "no reading")


def _style(arm: ArmRecord, i: int) -> tuple[str, str, str]:
    """Dash, colour and mark of an arm."""
    return (
        DASHES[i % len(DASHES)] if arm.along else "",
        COLOURS.get(arm.family, GREY),
        SHAPES[i % len(SHAPES)],
    )


def _panel(axes: Axes, arms: list[ArmRecord], across: Read) -> None:
    level(axes, 0.0)
    ends: list[float] = [0.0]
    for i, arm in enumerate(arms):
        dash, colour, shape = _style(arm, i)
        known = [
            (across(place), place.trait)
            for place in arm.curve
            if math.isfinite(across(place).value) and math.isfinite(place.trait.value)
        ]
        spots = [(x.value, y.value) for x, y in known]
        if arm.along and spots:
            path = [(0.0, 0.0), *spots]
            axes.plot(
                [x for x, _ in path], [y for _, y in path], dash, color=colour, lw=1.2, alpha=0.7
            )
        for x, y in known:
            if math.isfinite(y.low):
                axes.vlines(x.value, y.low, y.high, color=colour, lw=1, alpha=0.35, zorder=2)
            axes.plot(x.value, y.value, shape, color=colour, ms=8, mec=CARD, mew=0.7, zorder=4)
        ends += [y for _, y in spots]
    axes.plot(0, 0, "*", color=INK, ms=14, mec=CARD, mew=0.7, zorder=5)
    # Intervals of few seeds are wider than the figure: points decide what is seen.
    span = max(ends) - min(ends) or 1.0
    axes.set_ylim(min(ends) - 0.25 * span, max(ends) + 0.25 * span)
    if len(ends) == 1:
        note(axes, "no reading")
