"""The only module that prints: bars, one line per step and round, tables, messages.

Model text is data: control characters are shown as `�` and markup in it is not interpreted.
"""

import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from steerheal.numbers import shown
from steerheal.records import Control, HealStep, RoundRecord, StageMark

LEAST_COLUMN = 24
"""Columns of the terminal that a cell of text needs to stand beside another."""
MARKS = {"good": "✓", "bad": "✗", "unknown": "?"}


def printable(text: str, *, keep: str = "\n") -> str:
    """The text with every control character but `keep` replaced by a visible mark."""
    return "".join(c if c.isprintable() or c in keep else "�" for c in text)


def _widths(columns: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """Width of every column within `room`, the narrowest first served; None where a word is cut."""
    least = [max(cell_len(word) for cell in cells for word in _words(cell)) for cells in columns]
    spare = room - sum(least)
    if spare < 0:
        return None
    widths = list(least)
    wanted = [max(map(cell_len, cells)) - low for cells, low in zip(columns, least, strict=True)]
    for place in sorted(range(len(wanted)), key=wanted.__getitem__):
        grown = min(wanted[place], spare)
        widths[place] += grown
        spare -= grown
    return widths


def _words(cell: str) -> list[str]:
    """What a line break must not part, an interval among them; an empty cell is one empty word."""
    return re.findall(r"\[[^\[\]]{,40}\]|\S+", cell) or [""]


def _wrapped(cell: str, width: int) -> str:
    """The cell with line breaks between its words, so that every line fits."""
    first, *others = _words(cell)
    lines = [first]
    for word in others:
        longer = f"{lines[-1]} {word}"
        if cell_len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def _no_control(control: Control) -> str:
    return f"no unsteered control: {control.reason}"


@dataclass
class _Pace:
    """A heal's clock: since when, from which step, and the tokens trained on since then."""

    number: int
    first: int
    since: float
    tokens: int = 0


class Console:
    """Progress on standard error, results on standard output."""

    def __init__(self, *, of: str = "") -> None:
        """A command's, or of one of several processes that speak at once.

        Args:
            of: What stands before each of its notes; then there are neither bars nor steps.
        """
        self._of = of
        self._out = RichConsole(highlight=False, soft_wrap=True)
        self._err = RichConsole(stderr=True, highlight=False, soft_wrap=True)
        self._fault = self._err
        self._heal: _Pace | None = None

    def hushed(self) -> None:
        """Nothing but failures from now on: another process of the run says the rest."""
        self._out, self._err = RichConsole(quiet=True), RichConsole(quiet=True)

    def say(self, text: str) -> None:
        """A line of result."""
        self._out.print(Text(printable(text)))

    def note(self, text: str) -> None:
        """A line about the progress."""
        self._err.print(Text(printable(f"{self._of} · {text}" if self._of else text)))

    def error(self, text: str) -> None:
        """The one message of a failure."""
        self._fault.print(Text("error: ", style="bold red") + Text(printable(text)))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; cells are plain text, wrapped between words, none of which is cut.

        Where even its longest words do not fit beside each other, a row is a block of lines.
        """
        heads, *cells = [[printable(cell) for cell in row] for row in (columns, *rows)]
        room = self._out.width - 3 * len(heads) - 1
        widths = _widths(list(zip(heads, *cells, strict=True)), room)
        if widths is None:
            self._blocks(title, heads, cells)
            return
        table = Table(title=Text(printable(title)), title_justify="left")
        for head, width in zip(heads, widths, strict=True):
            table.add_column(Text(_wrapped(head, width)), width=width)
        for row in cells:
            table.add_row(*map(Text, map(_wrapped, row, widths)))
        self._out.print(table)

    def _blocks(self, title: str, heads: list[str], rows: list[list[str]]) -> None:
        """A table's rows one under the other: its first cell, then a line per column."""
        longest = max(map(cell_len, heads[1:]), default=0)
        self.say(title)
        for first, *others in rows:
            self.say(f"\n{heads[0]} {first}")
            for head, cell in zip(heads[1:], others, strict=True):
                self.say(f"  {head}{' ' * (longest - cell_len(head))}  {cell}")

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar with the time left; one line remains when the stage is done."""
        start = time.perf_counter()
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._err,
            transient=True,
            disable=not self._err.is_terminal or bool(self._of),
        ) as progress:
            task = progress.add_task(printable(title), total=total)
            yield lambda count: progress.advance(task, count)
        self.note(f"{title} · {total} rows · {time.perf_counter() - start:.1f} s")

    def heal_step(self, number: int, step: HealStep, of: int) -> None:
        """One line per optimiser step, fixed columns.

        The pace is that of the steps after the first one seen, which starts the clock: a heal that
        goes on after a break does not begin at step 0.
        """
        if self._of:
            return
        now = time.perf_counter()
        if self._heal is None or self._heal.number != number or step.step <= self._heal.first:
            self._heal = _Pace(number, step.step, now)
            pace = "…"
        else:
            self._heal.tokens += step.tokens
            spent = max(1e-9, now - self._heal.since)
            left = (of - step.step - 1) * spent / (step.step - self._heal.first)
            pace = f"{self._heal.tokens / spent:5.0f} tokens/s · {left:4.0f} s left"
        parts = [f"round {number + 1}", f"step {step.step + 1:03d}/{of:03d}", f"fit {step.ce:6.3f}"]
        if not math.isnan(step.divergence):
            parts += [f"D {step.divergence:6.3f}", f"barrier {step.barrier:6.3f}"]
            parts += [f"pressure {step.pressure:5.2f}"]
        self.note(" · ".join([*parts, f"lr {step.lr:.1e}", pace]))

    def stage_mark(self, mark: StageMark) -> None:
        """A stage that did not have to be made, or that was made again."""
        place = "base" if mark.round < 0 else f"round {mark.round + 1}"
        if mark.made_again:
            self.note(f"{place} · {mark.name} · made again: {mark.made_again}")
        if mark.halved and not mark.reused:
            self.note(
                f"{place} · {mark.name} · memory ran out: {mark.halved} rows or positions fit"
            )
        if mark.reused:
            self.note(f"{place} · {mark.name} · reused ({mark.seconds:.1f} s saved)")

    def round_done(self, record: RoundRecord) -> None:
        """A round's numbers, and a line per check: what it saw and what to try."""
        head = f"round {record.round + 1} {record.outcome}"
        if record.drawn:
            head += f" · kept {record.kept} of {record.drawn} at dose {record.multiplier:.3g}"
            if record.curve is not None:
                head += f" · knee {record.curve.dose:.3g}"
        parts = [head]
        control = record.control
        for state in (record.steered, record.healed, control.read if control else None):
            if state is not None:
                parts.append(
                    f"{state.state}: Δtrait {shown(state.gain)}, coherence {state.coherence:.3f}"
                )
        if record.retain is not None:
            parts.append(f"retain {shown(record.retain)} · recovered {shown(record.recovered)}")
        if control is not None:
            net = f"Δtrait {shown(record.over_control)}, retain {shown(control.retain)}"
            parts.append(f"healed − control: {net}" if control.read else _no_control(control))
        parts += [
            f"{MARKS[finding.tone]} {finding.check} · {finding.outcome} · {finding.advice}"
            for finding in record.findings
        ]
        self.note("\n  ".join(parts))

    def asked(self, what: str) -> str | None:
        """The next line of standard input, without its end; None where there is no more.

        Where somebody types, `what` stands before it.
        """
        if sys.stdin.isatty():
            try:
                return self._out.input(Text(printable(what)))
            except EOFError:
                return None
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None

    def side_by_side(self, rows: Sequence[Sequence[str]], names: Sequence[str]) -> None:
        """Cells of text in columns of the same width; below each other where there is no room."""
        self._out.print(self._columns(rows, names))

    @contextmanager
    def growing(self, names: Sequence[str]) -> Iterator[Callable[[Sequence[str]], None]]:
        """A row of cells that is drawn anew whenever it is given, and goes away at the end.

        Where nobody watches nothing is drawn.
        """
        if not self._out.is_terminal:
            yield lambda _: None
            return
        with Live(console=self._out, transient=True, auto_refresh=False) as live:
            yield lambda cells: live.update(self._columns([cells], names), refresh=True)

    def _columns(self, rows: Sequence[Sequence[str]], names: Sequence[str]) -> Table:
        """The table; every name stands above its cells in narrow places."""
        wide = self._out.width >= LEAST_COLUMN * len(names)
        table = Table(show_lines=True, show_header=wide)
        for name in names if wide else [""]:
            table.add_column(Text(printable(name)), ratio=1, overflow="fold")
        for row in rows:
            if wide:
                table.add_row(*(Text(printable(cell)) for cell in row))
                continue
            for name, cell in zip(names, row, strict=True):
                table.add_row(Text(printable(f"{name}\n\n{cell}")))
        return table
