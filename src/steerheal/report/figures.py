"""A run's figures: RunRecord in, matplotlib Figure out. No disk; same record, same bytes."""

import math
import textwrap
from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steerheal.measure.readings.table import Entry, listed
from steerheal.records import BREAKDOWN, UNREAD, HealLog, Reading, RunRecord, Summary
from steerheal.report import axis
from steerheal.report.captions import plane
from steerheal.report.draw import (
    BLUE,
    CARD,
    GREEN,
    GREY,
    INK,
    course,
    journey,
    key,
    legend,
    level,
    line,
    note,
    round_ticks,
    sheet,
    states,
    styled,
)
from steerheal.report.front import front
from steerheal.report.theme import LIGHT
from steerheal.report.words import coherence_title, number_setting, trait_label

ACROSS = 3
"""Panels beside each other."""
PANEL_WIDTH = 16
"""Characters of a panel's title in a line."""
WAYS = {-1: "↑ ", 0: "", 1: "↓ "}
"""Where undamaged text lies, by which way damage moves a reading."""


def _value(read: Callable[[Summary], float]) -> Callable[[Summary], Reading]:
    return lambda summary: Reading(value=read(summary))


def _table(name: str) -> Callable[[Summary], Reading]:
    return lambda summary: summary.values.get(name, UNREAD)


def _panel_title(entry: Entry) -> str:
    """Its title within the width of a panel, and where undamaged text lies."""
    title = WAYS[entry.damage] + entry.title.removeprefix(f"{entry.unit} of ")
    return textwrap.fill(title, PANEL_WIDTH)


def coherence_entries(record: RunRecord) -> list[Entry]:
    """The readings of coherence that any state of the run has."""
    names = dict.fromkeys(name for row in states(record) for name in row.summary.values)
    return [entry for entry in listed(names) if entry.kind == "coherence"]


def _nats(foundation: str) -> Callable[[Summary], Reading]:
    return _value(lambda summary: summary.nats.get(foundation, math.nan))


def trajectory(record: RunRecord) -> Figure:
    """Trait against coherence, an arrow per round from steered to healed, and the Pareto front."""
    with styled():
        figure, (axes,) = sheet(4.5)
        _draw_front(axes, record)
        level(axes, number_setting(record, "coherence_floor"), vertical=True)
        journey(
            axes,
            record,
            _value(lambda summary: summary.coherence),
            lambda summary: summary.trait,
            whiskers=True,
        )
        axes.set_xlabel(f"coherence: {coherence_title(record.base)} over the base's (share)")
        axes.set_ylabel(f"trait: {trait_label(record.base)}")
        legend(
            figure,
            ("Pareto front of all states", line("-", BLUE)),
            ("coherence floor", line(":", INK)),
            ("95 % interval of the trait", line("", GREY, "|")),
        )
    return figure


def _draw_front(axes: Axes, record: RunRecord) -> None:
    pairs = [(row.summary.coherence, row.summary.trait.value) for row in states(record)]
    best = [pairs[i] for i in front(pairs)]
    xs, ys = [x for x, _ in best], [y for _, y in best]
    axes.plot(xs, ys, drawstyle="steps-pre", color=BLUE, lw=1, zorder=1)


def coherence(record: RunRecord) -> Figure:
    """The readings of coherence over rounds, one panel each, each on its own scale."""
    panels = coherence_entries(record)
    rows = max(1, math.ceil(len(panels) / ACROSS))
    with styled():
        figure, axes = sheet(0.4 + 2.4 * rows, rows, ACROSS)
        for panel in axes[len(panels) :]:
            panel.set_axis_off()
        for panel, entry in zip(axes, panels, strict=False):
            drawn = course(panel, record, _table(entry.name))
            panel.set_title(_panel_title(entry))
            panel.set_ylabel(entry.unit)
            if entry.unit == "perplexity" and drawn and max(drawn) > 50 * min(drawn):
                panel.set_yscale("log")
            elif drawn and min(drawn) >= 0:
                panel.set_ylim(bottom=max(panel.get_ylim()[0], -0.04 * panel.get_ylim()[1]))
            if record.base and entry.name == record.base.heads.get("coherence"):
                level(panel, number_setting(record, "coherence_floor") * record.base.mass.value)
        for panel in axes[-ACROSS:]:
            panel.set_xlabel("round")
        legend(figure, ("coherence floor", line(":", INK)))
    return figure


def foundations(record: RunRecord) -> Figure:
    """The target foundation against one that should stay, an arrow per round to the healed."""
    across, up = plane(record)
    with styled():
        figure, (axes,) = sheet(4.2)
        journey(axes, record, _nats(across), _nats(up), whiskers=False)
        axes.set_xlabel(f"{across.capitalize()}: ln mean probability (nats)")
        axes.set_ylabel(f"{up.capitalize()}: ln mean probability (nats)")
        legend(figure)
    return figure


def trait(record: RunRecord) -> Figure:
    """The trait over rounds: by the persona's two poles, and by its axis foundation."""
    name = axis.foundation(record)

    def moved(summary: Summary) -> Reading:
        if summary.state == "base":
            return Reading(value=0.0)
        return summary.delta_nats.get(name, Reading.unknown("not read"))

    with styled():
        figure, (left, right) = sheet(3.5, 1, 2)
        course(left, record, lambda summary: summary.free_trait)
        if record.base:
            level(left, record.base.free_trait.value)
        left.set_title("log-odds of the poles")
        left.set_ylabel("nats/token")
        if name:
            course(right, record, moved)
            level(right, 0.0)
        else:
            note(right, "the persona names no foundation")
        right.set_title(f"{name.capitalize() or 'Axis foundation'}, change from the base")
        right.set_ylabel("nats")
        for panel in (left, right):
            panel.set_xlabel("round")
        interval = ("95 % interval", line("", GREY, "|"))
        legend(figure, ("level of the base", line(":", INK)), interval)
    return figure


def heals(record: RunRecord) -> list[tuple[int, HealLog]]:
    """Rounds (from 1) with a heal that took a step."""
    return [(row.round + 1, row.heal) for row in record.rounds if row.heal and row.heal.steps]


def heal(record: RunRecord) -> Figure:
    """Cross-entropy per optimiser step, round after round; with a barrier, D and its pull too."""
    steps = [step for _, log in heals(record) for step in log.steps]
    barrier = any(math.isfinite(step.divergence) for step in steps)
    with styled():
        figure, panels = sheet(6.4, 4) if barrier else sheet(3.0)
        start = 0
        for count, (number, log) in enumerate(heals(record)):
            _draw_heal(panels, log, start)
            end = start + len(log.steps)
            for panel in panels:
                if count % 2:
                    panel.axvspan(start + 0.5, end + 0.5, color=LIGHT["tint"], zorder=0)
            middle, spot = (start + end + 1) / 2, panels[0].get_xaxis_transform()
            label = f"round {number}" if len(record.rounds) <= 8 else str(number)
            panels[0].text(middle, 1.03, label, transform=spot, ha="center", color=GREY, size=9)
            start = end
        panels[0].set_xlim(0, max(start, 1) + 1)
        units = (
            "CE\n(nats/token)",
            "divergence\n(nats)",
            "barrier\n(nats)",
            "pressure",
        )
        for panel, unit in zip(panels, units, strict=False):
            panel.set_ylabel(unit)
        panels[-1].set_xlabel("optimiser step, over all rounds")
        figure.align_ylabels(panels)
        held = ("held out, before training and after each epoch", line("", INK, "D"))
        keys = [("trained on", line("-", GREEN)), held]
        if barrier:
            level(panels[1], number_setting(record, "heal", "tau"))
            keys.append(("τ", line(":", INK)))
        key(figure, keys)
    return figure


def _draw_heal(panels: list[Axes], log: HealLog, start: int) -> None:
    xs = [start + 1 + index for index in range(len(log.steps))]
    curves = (
        [step.ce for step in log.steps],
        [step.divergence for step in log.steps],
        [step.barrier for step in log.steps],
        [step.pressure for step in log.steps],
    )
    marker = "." if len(xs) <= 60 else ""
    for panel, curve in zip(panels, curves, strict=False):
        finite = [value if math.isfinite(value) else math.nan for value in curve]
        panel.plot(xs, finite, color=GREEN, lw=1.3, marker=marker, zorder=3)
    epochs = [step.epoch for step in log.steps]
    last = [x for x, now, then in zip(xs, epochs, [*epochs[1:], None], strict=True) if now != then]
    for x, held in zip([start + 0.5, *last], log.held_out, strict=False):
        if math.isfinite(held):
            panels[0].plot(x, held, "D", color=INK, ms=4.5, mec=CARD, mew=0.6, zorder=4)


def budget(record: RunRecord) -> Figure:
    """KL spent, round by round, against where steering without healing breaks down."""
    summed = [(0, 0.0)] + [(row.round + 1, row.kl_cumulative) for row in record.rounds]
    direct = [(row.round + 1, row.healed.kl.value) for row in record.rounds if row.healed]
    with styled():
        figure, (axes,) = sheet(3.6)
        level(axes, BREAKDOWN)
        top = BREAKDOWN
        for points, dash, colour, fill, size in (
            (summed, "-o", GREEN, GREEN, 7),
            (direct, "D", INK, CARD, 6),
        ):
            known = [point for point in points if math.isfinite(point[1])]
            xs, ys = [x for x, _ in known], [y for _, y in known]
            edge = CARD if fill == colour else colour
            axes.plot(xs, ys, dash, color=colour, mfc=fill, mec=edge, ms=size, lw=1.6, zorder=4)
            top = max([top, *ys])
        round_ticks(axes, len(record.rounds))
        axes.set_ylim(-0.04 * top, 1.12 * top)
        axes.set_xlabel("round")
        axes.set_ylabel("KL (nats/token)")
        published = f"published breakdown without healing ({BREAKDOWN} nats)"
        keys = (
            ("KL per round, summed", line("-", GREEN, "o")),
            ("KL to the base, direct", line("", INK, "D", hollow=True)),
            (published, line(":", INK)),
        )
        key(figure, keys)
    return figure
