"""The figures' shared hand: style, marks, arrows, and a figure as SVG or PNG. Never pyplot.

Steered is a red square, healed a green circle, the base a black star, so that the states differ by
shape as well as by colour. No text of a model, prompt or file is drawn.
"""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from steerheal.records import Reading, RunRecord, Summary
from steerheal.report.theme import LIGHT

INK, GREY, CARD = LIGHT["ink"], LIGHT["soft"], LIGHT["card"]
RED, GREEN, BLUE = LIGHT["steer"], LIGHT["heal"], LIGHT["accent"]
COLOURS = {"base": INK, "steered": RED, "healed": GREEN}
MARKERS = {"base": "*", "steered": "s", "healed": "o"}
STYLE = {
    "figure.facecolor": CARD,
    "savefig.facecolor": CARD,
    "axes.facecolor": CARD,
    "text.color": INK,
    # Names of arms are drawn, and a name is no formula.
    "text.parse_math": False,
    "axes.labelcolor": INK,
    "font.size": 11,
    "axes.edgecolor": LIGHT["edge"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": LIGHT["rule"],
    "xtick.color": LIGHT["edge"],
    "ytick.color": LIGHT["edge"],
    "xtick.labelcolor": GREY,
    "ytick.labelcolor": GREY,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
WIDTH = 6.6
"""Inches of every figure: narrow, so that its words can be read where it is shrunk to a phone."""
Kind = Literal["base", "steered", "healed"]
Read = Callable[[Summary], Reading]


class State(NamedTuple):
    """An evaluated state; the base is round 0, rounds count from 1."""

    round: int
    kind: Kind
    summary: Summary


def states(record: RunRecord) -> list[State]:
    """Every evaluated state, in the order of the run."""
    rows = [State(0, "base", record.base)] if record.base else []
    for item in record.rounds:
        if item.steered:
            rows.append(State(item.round + 1, "steered", item.steered))
        if item.healed:
            rows.append(State(item.round + 1, "healed", item.healed))
    return rows


@contextmanager
def styled(salt: str = "") -> Iterator[None]:
    """The house style, whatever the reader's own matplotlib settings are; `salt` fixes SVG ids."""
    with style.context(["default", {**STYLE, "svg.hashsalt": f"steerheal-{salt}"}]):
        yield


def svg(figure: Figure, salt: str) -> str:
    """The figure as SVG, without a date, with ids that follow from `salt` and content."""
    stream = io.StringIO()
    with styled(salt):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def pdf(figure: Figure) -> bytes:
    """The figure as PDF, without a date, its letters as TrueType, which publishers ask for."""
    stream = io.BytesIO()
    with styled(), style.context({"pdf.fonttype": 42}):
        figure.savefig(stream, format="pdf", metadata={"CreationDate": None})
    return stream.getvalue()


def png(figure: Figure) -> bytes:
    """The figure as PNG."""
    stream = io.BytesIO()
    with styled():
        figure.savefig(stream, format="png", dpi=150)
    return stream.getvalue()


def stamp(axes: Axes, spot: tuple[float, float], kind: Kind, number: int) -> None:
    """A state's mark with its round's number inside; the base's star has none."""
    size = {"base": 17, "steered": 11, "healed": 12.5}[kind]
    axes.plot(
        *spot, marker=MARKERS[kind], color=COLOURS[kind], ms=size, mec=CARD, mew=0.8, zorder=5
    )
    if kind != "base":
        axes.annotate(
            str(number),
            spot,
            color=CARD,
            ha="center",
            va="center_baseline",
            size=7.5 if number < 10 else 6.5,
            weight="bold",
            zorder=6,
        )


def whisker(axes: Axes, x: float, reading: Reading, kind: Kind) -> None:
    """The 95 % interval as a vertical bar, if there is one."""
    if math.isfinite(x) and math.isfinite(reading.low) and math.isfinite(reading.high):
        axes.vlines(x, reading.low, reading.high, color=COLOURS[kind], lw=1.3, alpha=0.6, zorder=3)


def journey(axes: Axes, record: RunRecord, x: Read, y: Read, *, whiskers: bool) -> None:
    """Base star, healed circles joined, and an arrow per round from steered to healed."""
    spots: dict[tuple[int, Kind], tuple[float, float]] = {}
    for state in states(record):
        across, up = x(state.summary), y(state.summary)
        if math.isfinite(across.value) and math.isfinite(up.value):
            spots[state.round, state.kind] = (across.value, up.value)
            if whiskers:
                whisker(axes, across.value, up, state.kind)
    healed = [spot for (_, kind), spot in spots.items() if kind != "steered"]
    if len(healed) > 1:
        across_line, up_line = zip(*healed, strict=True)
        axes.plot(across_line, up_line, color=GREEN, lw=1.6, alpha=0.55, zorder=2)
    for (number, kind), spot in spots.items():
        end = spots.get((number, "healed"))
        if kind == "steered" and end and end != spot:
            arrow(axes, spot, end)
    for (number, kind), spot in spots.items():
        stamp(axes, spot, kind, number)
    axes.margins(0.1, 0.12)
    if not spots:
        note(axes, "no reading")


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """A thin arrow between two marks."""
    shape = {"arrowstyle": "-|>", "color": GREY, "lw": 1.1, "shrinkA": 6, "shrinkB": 7}
    axes.annotate("", xy=end, xytext=start, arrowprops=shape, zorder=4)


def course(axes: Axes, record: RunRecord, read: Read) -> list[float]:
    """A reading over rounds: healed joined from the base on, steered dashed; the values drawn."""
    drawn: list[float] = []
    lines: tuple[tuple[Kind, str, float], ...] = (("steered", "--", 0.07), ("healed", "-", 0.0))
    for kind, dash, shift in lines:
        rows: list[tuple[float, Kind, Reading]] = [
            (state.round + (shift if state.round else 0), state.kind, read(state.summary))
            for state in states(record)
            if state.kind == kind or (state.kind == "base" and kind == "healed")
        ]
        known = [row for row in rows if math.isfinite(row[2].value)]
        line = ([x for x, _, _ in known], [reading.value for _, _, reading in known])
        axes.plot(*line, dash, color=COLOURS[kind], lw=1.4, alpha=0.6, zorder=2)
        for x, what, reading in known:
            size = 12 if what == "base" else 6.5
            shape = {"marker": MARKERS[what], "color": COLOURS[what], "ms": size}
            axes.plot(x, reading.value, **shape, mec=CARD, mew=0.7, zorder=5)
            whisker(axes, x, reading, what)
            drawn.append(reading.value)
    round_ticks(axes, len(record.rounds))
    axes.margins(y=0.14)
    if not drawn:
        note(axes, "no reading")
    return drawn


def round_ticks(axes: Axes, rounds: int) -> None:
    """An axis of rounds that starts at the base."""
    every = range(0, rounds + 1, max(1, math.ceil(rounds / 10)))
    axes.set_xticks(list(every), ["base" if number == 0 else str(number) for number in every])
    axes.set_xlim(-0.4, max(1, rounds) + 0.4)


def note(axes: Axes, text: str) -> None:
    """A remark in the middle of an empty panel."""
    axes.text(
        0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY, size=10
    )


def level(axes: Axes, value: float, *, vertical: bool = False) -> None:
    """A dotted line at a limit; nothing when the limit is unknown."""
    if math.isfinite(value):
        (axes.axvline if vertical else axes.axhline)(value, color=INK, ls=":", lw=1.2, zorder=1)


def legend(figure: Figure, *extra: tuple[str, Line2D]) -> None:
    """The key of figures of states: the three marks and what else is drawn."""
    marks = [("base", mark("base")), ("steered (hook on)", mark("steered"))]
    key(figure, [*marks, ("healed (no hook)", mark("healed")), *extra])


def key(figure: Figure, entries: Sequence[tuple[str, Line2D]]) -> None:
    """A key under the panels, in as few rows as the figure's width takes; read from the left."""
    columns = next(n for n in range(len(entries), 0, -1) if n == 1 or _fits(entries, n))
    ordered = [entry for place in range(columns) for entry in entries[place::columns]]
    handles, labels = [handle for _, handle in ordered], [label for label, _ in ordered]
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, columnspacing=1.6, fontsize=9.5
    )


def _fits(entries: Sequence[tuple[str, Line2D]], columns: int) -> bool:
    """Whether the key's columns are within the figure: 0.08 inches a letter, 0.6 a mark."""
    widest = [max(len(label) for label, _ in entries[place::columns]) for place in range(columns)]
    return sum(0.08 * size + 0.6 for size in widest) <= WIDTH


def mark(kind: Kind) -> Line2D:
    """A state's mark for the key."""
    size = 13 if kind == "base" else 8
    return Line2D([], [], ls="", marker=MARKERS[kind], color=COLOURS[kind], ms=size, mec=CARD)


def line(dash: str, colour: str = GREY, marker: str = "", *, hollow: bool = False) -> Line2D:
    """A line or a mark for the key."""
    fill = CARD if hollow else colour
    return Line2D([], [], ls=dash, marker=marker, color=colour, mfc=fill, lw=1.4, ms=6)


def sheet(height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure of the page's width and its panels, row by row."""
    figure = Figure(figsize=(WIDTH, height))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=rows > 1)
    return figure, [panel for row in panels for panel in row]
