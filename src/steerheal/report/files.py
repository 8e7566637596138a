"""The files of a run folder that its report reads, and a sentence for each that it does not get."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from steerheal import store
from steerheal.errors import UserError
from steerheal.records import Harvest, HealLog, Judged, RoundRecord, RunRecord, Scores, Shown
from steerheal.report.words import at, one_line

T = TypeVar("T")
SCORES = "The readings come from run.json; the answers behind them cannot be read again."
SHOWN = "The answers that they held are not shown."
HARVEST = "What the filter did comes from run.json, without its limit and borderline samples."
HEAL = "How the heal went comes from run.json, if it is noted there."


class Wanted(NamedTuple):
    """A file that the report reads."""

    path: Path
    check: Callable[[Path], str]
    """What it holds too little of; empty when it is whole. Raises UserError when unreadable."""
    without: str
    """What the report is when it is not there or not readable."""


def attempt(folder: Path, read: Callable[[], T]) -> T | str:
    """What was read, or why it could not be, with paths as the run folder has them."""
    try:
        return read()
    except UserError as error:
        return _relative(folder, error)


def _relative(folder: Path, error: UserError) -> str:
    return f"{one_line(str(error))}.".replace(f"{folder}/", "")


def lacking(folder: Path, record: RunRecord) -> list[str]:
    """What the report lacks: a sentence for every file that is not whole.

    Files that are not there at all are named by kind, a sentence each.
    """
    gone: dict[str, list[str]] = {}
    said = record.unread()
    for path, check, without in _wanted(folder, record):
        if not path.is_file():
            gone.setdefault(without, []).append(str(path.relative_to(folder)))
            continue
        try:
            short = check(path)
        except UserError as error:
            short = f"{_relative(folder, error)} {without}"
        if short:
            said.append(short)
    absent = [f"Not there: {', '.join(names)}. {without}" for without, names in gone.items()]
    return [*absent, *said]


def _wanted(folder: Path, record: RunRecord) -> Iterator[Wanted]:
    prompts = _show_prompts(record)
    if record.base:
        base = store.round_folder(folder, -1)
        yield Wanted(base / "scores.json", _holds(Scores), SCORES)
        yield Wanted(base / "shown.json", _answers(folder, prompts), SHOWN)
    if record.test is not None:
        for number in (-1, record.test.round):
            yield Wanted(store.round_folder(folder, number) / store.TEST, _holds(Scores), SCORES)
    for row in record.rounds:
        place = store.round_folder(folder, row.round)
        yield from _of_harvest(place, row)
        if row.heal is not None or row.outcome in ("folded", "rejected"):
            yield Wanted(place / "heal.json", _holds(HealLog), HEAL)
        for state in ("steered", "healed"):
            read = getattr(row, state) is not None
            if read:
                yield Wanted(place / f"{state}.json", _holds(Scores), SCORES)
            if read or (state == "steered" and row.drawn > 0):
                yield Wanted(place / f"shown-{state}.json", _answers(folder, prompts), SHOWN)


def _of_harvest(place: Path, row: RoundRecord) -> Iterator[Wanted]:
    if row.drawn == 0:
        return

    def check(path: Path) -> str:
        found = len(store.read_lines(path, Judged))
        name = f"{path.parent.name}/{path.name}"
        if found == row.drawn:
            return ""
        return f"{name} holds {found} of {row.drawn} completions, and the report sees only these."

    yield Wanted(place / "harvest.json", _holds(Harvest), HARVEST)
    yield Wanted(place / "completions.jsonl", check, HARVEST)


def _holds(kind: type[Scores] | type[HealLog] | type[Harvest]) -> Callable[[Path], str]:
    def check(path: Path) -> str:
        store.read_record(path, kind)
        return ""

    return check


def _answers(folder: Path, prompts: int) -> Callable[[Path], str]:
    def check(path: Path) -> str:
        found = len(store.read_record(path, Shown).completions)
        if found >= prompts:
            return ""
        name = path.relative_to(folder)
        return f"{name} answers {found} of {prompts} show prompts; the others are not shown."

    return check


def _show_prompts(record: RunRecord) -> int:
    """How many show prompts the persona has; 0 where the record does not say."""
    show = at(record.persona, "prompts", "show")
    return len(show) if isinstance(show, list | tuple) else 0
