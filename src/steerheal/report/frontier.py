"""Trait against damage and against KL, an arm a line from the base: the figure of a comparison.

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


def figure(record: CompareRecord) -> Figure:
    """The two panels and their key."""
    drawn = [arm for arm in record.arms if arm.curve and arm.family != "base"]
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
