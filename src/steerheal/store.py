"""A run's folder as records: what is read from it and written to it.

Layout of a run folder (rounds count from 1 on disk and on screen):

    run.json                  RunRecord, rewritten after every stage
    base/                     scores.json  prompted.json  shown.json  test.json
    round-01/                 vector.safetensors  harvest.json  completions.jsonl  heal.json
                              adapter/ (PEFT's own format)  steered.json  healed.json
                              shown-steered.json  shown-healed.json
                              test.json, of the round that the headline reports
                              control.json  control/ (the unsteered control's texts.json,
                              heal.json, adapter/ and test.json)
    figures/  report.html

Every file appears whole or not at all: it is written beside its place and renamed.
"""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from steerheal.disk import whole, write_text
from steerheal.errors import UserError
from steerheal.line import with_option
from steerheal.records import (
    READS,
    VERSION,
    Harvest,
    HealLog,
    Judged,
    Record,
    RunRecord,
    Scores,
    Shown,
)

R = TypeVar("R", bound=Record)
TEST = "test.json"
"""A state's answers to the test prompts."""
RUN = "run.json"
COMPARE = "compare.json"
"""A comparison's record, in a folder beside the runs'."""
SWEEP = "sweep.json"
"""A sweep's record, in a folder beside its runs'."""


def write_record(path: Path, record: Record) -> None:
    """Writes a record as JSON."""
    write_text(path, _json(record, indent=1) + "\n")


def read_record(path: Path, kind: type[R]) -> R:
    """A record from its JSON file.

    Raises:
        UserError: missing, unreadable, or of another shape.
    """
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValidationError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{path} is not a {kind.__name__} of this version ({first}).") from error


def write_lines(path: Path, records: Sequence[Record]) -> None:
    """Writes records as JSON lines."""
    write_text(path, "".join(_json(record) + "\n" for record in records))


def _json(record: Record, *, indent: int | None = None) -> str:
    """The record as JSON; half a surrogate pair, which JSON cannot hold, as U+FFFD."""
    try:
        return record.model_dump_json(indent=indent)
    except PydanticSerializationError:
        found = type(record).model_validate(_whole(record.model_dump()))
        return found.model_dump_json(indent=indent)


def _whole(value: object) -> object:
    """The value with whole characters only in every text."""
    if isinstance(value, str):
        return whole(value)
    if isinstance(value, dict):
        return {_whole(name): _whole(item) for name, item in value.items()}
    return type(value)(map(_whole, value)) if isinstance(value, list | tuple) else value


def read_lines(path: Path, kind: type[R]) -> list[R]:
    """Records from a file of JSON lines, which only a line feed ends: text may hold other breaks.

    Raises:
        UserError: missing, unreadable, or of another shape.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        return [kind.model_validate_json(line) for line in lines if line.strip()]
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{path} holds a line that is not a {kind.__name__}.") from error


def read_run(folder: Path) -> RunRecord:
    """The record of a run.

    Raises:
        UserError: not a run folder, or one of another version.
    """
    path = folder / RUN
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it has no run.json.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    try:
        raw = json.loads(content)
        found = raw["version"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged_run(folder, content) from error
    if found not in READS:
        raise UserError(
            f"{folder} was written by another version of steerheal (record version {found}, this "
            f"one reads {VERSION}). Start a new run, or use the version that wrote it."
        )
    try:
        return RunRecord.model_validate_json(content)
    except ValidationError as error:
        raise _damaged_run(folder, content) from error


def _damaged_run(folder: Path, content: bytes) -> UserError:
    """How a run comes back whose record was cut or overwritten: its stages lie elsewhere."""
    size = f"{len(content)} bytes that are no whole record" if content.strip() else "nothing"
    said = re.search(rb'"command": ("(?:[^"\\]|\\.)*")', content)
    line = ""
    if said:
        with suppress(ValueError):
            line = with_option(json.loads(said.group(1)), "--runs", str(folder.parent))
            line = f": `{with_option(line, '--name', folder.name)}`"
    return UserError(
        f"{folder / RUN} is damaged: it holds {size}. Finished stages are kept beside the run. "
        "Delete that file and give the command that made the run again, with "
        f"--runs {folder.parent} --name {folder.name}{line}. It makes nothing twice."
    )


def round_folder(run: Path, number: int) -> Path:
    """Where round `number` (from 0) lies; -1 is the base."""
    return run / ("base" if number < 0 else f"round-{number + 1:02d}")


def read_scores(run: Path, number: int, state: str) -> Scores:
    """The rows of an evaluation: state base (number -1), steered or healed."""
    name = "scores" if number < 0 else state
    return read_record(round_folder(run, number) / f"{name}.json", Scores)


def read_shown(run: Path, number: int, state: str) -> Shown:
    """The fixed show prompts as answered by a state: base (number -1), steered or healed."""
    name = "shown" if number < 0 else f"shown-{state}"
    return read_record(round_folder(run, number) / f"{name}.json", Shown)


def read_harvest(run: Path, number: int) -> Harvest:
    """A round's drawn completions with their verdicts."""
    folder = round_folder(run, number)
    return read_harvest_folder(folder)


def read_harvest_folder(folder: Path) -> Harvest:
    """A harvest from the folder it was saved in."""
    head = read_record(folder / "harvest.json", Harvest)
    rows = read_lines(folder / "completions.jsonl", Judged)
    return head.model_copy(update={"judged": tuple(rows)})


def write_harvest(folder: Path, harvest: Harvest) -> None:
    """Saves a harvest: its head as JSON, its completions as JSON lines."""
    write_record(folder / "harvest.json", harvest.model_copy(update={"judged": ()}))
    write_lines(folder / "completions.jsonl", harvest.judged)


def read_heal(run: Path, number: int) -> HealLog:
    """How a round's heal went."""
    return read_record(round_folder(run, number) / "heal.json", HealLog)
