"""`steerheal seeds`: finished runs that differ in their seed alone, read together."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from steerheal.bounds import FilePath
from steerheal.commands.command import POSITIONAL, Command
from steerheal.config import MOST_LISTED, unlike
from steerheal.console import Console
from steerheal.errors import UserError
from steerheal.numbers import shown
from steerheal.records import UNREAD, Comparison, OnTest, Reading, RunRecord
from steerheal.store import read_run

if TYPE_CHECKING:
    from steerheal.measure.compare import SeedBand


class SeedsCommand(Command):
    """Reads together runs that differ only in their seed: means with intervals over seeds."""

    runs: Annotated[tuple[FilePath, ...], POSITIONAL, Field(max_length=MOST_LISTED)]
    """Two or more run folders."""
    all: bool = False
    """Show every reading, not only the headline's."""

    def check(self) -> None:
        """Refuses what is no run, and runs that differ in more than their seed."""
        _refuse_unlike(self.runs, [read_run(folder) for folder in self.runs])

    def do(self, console: Console, works: Callable[[], None]) -> None:
        """Shows every round's comparisons, mean over seeds with a t-interval."""
        from steerheal.measure.compare import across_seeds

        works()
        records = [read_run(folder) for folder in self.runs]
        rounds = min(len(record.rounds) for record in records)
        for folder, record in zip(self.runs, records, strict=True):
            if len(record.rounds) > rounds:
                console.note(
                    f"{folder} has {len(record.rounds)} rounds, another run {rounds}: the later "
                    "ones are left out"
                )
        _show_tested([record.test for record in records], console)
        for number in range(rounds):
            for alike in shared([record.rounds[number].comparisons for record in records]):
                _show(number, across_seeds(alike), self.all, console)


def _show_tested(tests: Sequence[OnTest | None], console: Console) -> None:
    """The chosen rounds on the prompts that chose nothing: what to report."""
    from steerheal.measure.compare import over_seeds
    from steerheal.measure.readings.table import free_trait, headed, listed

    known = [test for test in tests if test is not None]
    if len(known) < len(tests):
        lacking = len(tests) - len(known)
        console.note(f"{lacking} of {len(tests)} runs were not read on test prompts: no mean of it")
        return
    names = dict.fromkeys(name for test in known for name in test.changes)
    rows = []
    for entry in [entry for entry in listed(names) if entry.brief]:
        found = over_seeds([test.changes.get(entry.name, UNREAD) for test in known])
        rows.append((entry.difference, shown(found), _said(found)))
    for name, read in (
        ("unsteered control", [test.control for test in known]),
        ("healed less control", [test.over_control for test in known]),
    ):
        found = over_seeds([UNREAD if item is None else item.free_gain for item in read])
        rows.append((f"{free_trait(known[0]).difference}, {name}", shown(found), _said(found)))
    distance = over_seeds([test.kl for test in known])
    rows.append((headed("distance").label, shown(distance), _said(distance)))
    chosen = ", ".join(str(test.round + 1) for test in known)
    title = (
        f"chosen rounds ({chosen}) − base on test prompts that chose nothing · {len(known)} seeds, "
        "95 % t-interval"
    )
    console.table(title, ("reading", "mean over seeds", ""), rows)


def _said(reading: Reading) -> str:
    return "moved" if reading.moved else reading.reason or "not moved"


def shared(by_run: Sequence[Sequence[Comparison]]) -> list[list[Comparison]]:
    """The comparisons that all runs have, of every run."""
    kinds = [{(item.a, item.b): item for item in run} for run in by_run]
    return [[run[kind] for run in kinds] for kind in kinds[0] if all(kind in run for run in kinds)]


def _refuse_unlike(folders: Sequence[Path], records: Sequence[RunRecord]) -> None:
    if len(records) < 2:
        given = " ".join(map(str, folders)) or "none"
        raise UserError(f"Give two or more runs: one has no spread over seeds. Given: {given}.")
    settings = [record.settings(folder) for folder, record in zip(folders, records, strict=True)]
    used = [item.seed for item in settings]
    if len(set(used)) < len(used):
        raise UserError(f"Runs must differ in their seed; given seeds {used}.")
    first, *others = [item.model_dump(mode="json") for item in settings]
    for folder, other in zip(folders[1:], others, strict=True):
        found = sorted(unlike(first, other).keys() - {"seed"})
        if found:
            raise UserError(
                f"{folders[0]} and {folder} differ in more than their seed: {', '.join(found)}."
            )


def _show(number: int, band: "SeedBand", everything: bool, console: Console) -> None:
    from steerheal.measure.readings.table import listed

    of_table = {entry.name: entry for entry in listed(band.changes)}
    names = list(band.readings) if everything else [n for n, e in of_table.items() if e.brief]
    rows = [
        (
            of_table[name].difference if name in of_table else name,
            shown(band.readings[name]),
            _said(band.readings[name]),
        )
        for name in names
    ]
    title = f"round {number + 1} · {band.b} − {band.a} · {band.seeds} seeds, 95 % t-interval"
    console.table(title, ("reading", "mean over seeds", ""), rows)
    console.say(f"surgical in {band.surgical} of {band.seeds} seeds")
