"""The only module that touches a run's disk: run folders, finished stages, resume.

Layout of a run folder (rounds count from 1 on disk and on screen):

    run.json                  RunRecord, rewritten after every stage
    base/                     scores.json  shown.json
    round-01/                 vector.safetensors  harvest.json  completions.jsonl  heal.json
                              adapter/ (PEFT's own format)  steered.json  healed.json
                              shown-steered.json  shown-healed.json
    figures/  report.html

A finished stage lives once in `<runs>/.stages/<name>-<key>/` and is linked into every run that
asks for the same key, so that a resumed run, or one that differs only later on, does not repeat
it. Every folder and file appears whole or not at all: it is written beside its place and renamed.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError

from steerheal.errors import UserError
from steerheal.records import (
    VERSION,
    Harvest,
    HealLog,
    Judged,
    Record,
    RunRecord,
    Scores,
    Shown,
    StageMark,
)

R = TypeVar("R", bound=Record)
T = TypeVar("T")
STAGES = ".stages"


def key_of(*inputs: object) -> str:
    """Digest of a stage's inputs: settings, records and keys of earlier stages."""
    plain = [
        item.model_dump(mode="json") if isinstance(item, BaseModel) else item for item in inputs
    ]
    plain += [VERSION]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all; errors as in `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    work = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with work.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        work.replace(path)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        with suppress(OSError):
            work.unlink(missing_ok=True)


def disk_error(path: Path, error: Exception) -> UserError:
    """What the user is told when a write fails."""
    what = getattr(error, "strerror", None) or error
    return UserError(
        f"Cannot write {path}: {what}. What was finished is kept; make room, then resume, or "
        "move the folder of runs to where there is room and resume there."
    )


def write_record(path: Path, record: Record) -> None:
    """Writes a record as JSON."""
    write_text(path, record.model_dump_json(indent=1) + "\n")


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
    write_text(path, "".join(record.model_dump_json() + "\n" for record in records))


def read_lines(path: Path, kind: type[R]) -> list[R]:
    """Records from a file of JSON lines.

    Raises:
        UserError: missing, unreadable, or of another shape.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [kind.model_validate_json(line) for line in lines]
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except ValidationError as error:
        raise UserError(f"{path} holds a line that is not a {kind.__name__}.") from error


def read_run(folder: Path) -> RunRecord:
    """The record of a run.

    Raises:
        UserError: not a run folder, or one of another version.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it has no run.json.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {path}: {error}.") from error
    found = raw.get("version") if isinstance(raw, dict) else None
    if found != VERSION:
        raise UserError(
            f"{folder} was written by another version of steerheal (record version {found}, this "
            f"one reads {VERSION}). Start a new run, or use the version that wrote it."
        )
    return read_record(path, RunRecord)


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


class Store:
    """One run's folder and the stages it shares with its neighbours."""

    def __init__(self, runs: Path, name: str, *, notify: Callable[[StageMark], None]) -> None:
        """Opens (or makes) `runs`/`name`; `notify` hears of every stage as it is there.

        Raises:
            UserError: the folder cannot be made.
        """
        self.runs, self.folder = runs, runs / name
        self.marks: list[StageMark] = []
        self._notify = notify
        try:
            (runs / STAGES).mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(self.folder, error) from error

    def stage(
        self,
        name: str,
        number: int,
        key: str,
        *,
        make: Callable[[], T],
        save: Callable[[Path, T], None],
        load: Callable[[Path], T],
    ) -> T:
        """The stage's result: read when its key is finished, else made and saved.

        The key is the digest of the inputs, a hyphen and the digest of the code that makes it.
        Both ways the result is the one read back from disk, so that a resumed run continues from
        the very same values as an uninterrupted one.
        """
        home = self.runs / STAGES / f"{name}-{key}"
        reused, again = home.is_dir(), ""
        if not reused:
            again = self._by_other_code(name, key)
            self._make(home, make, save)
        result = load(home)
        self._place(home, round_folder(self.folder, number))
        seconds = json.loads((home / "stage.json").read_text(encoding="utf-8"))["seconds"]
        mark = StageMark(
            name=name, round=number, key=key, seconds=seconds, reused=reused, made_again=again
        )
        self.marks.append(mark)
        self._notify(mark)
        return result

    def _by_other_code(self, name: str, key: str) -> str:
        """Why a stage is made although one of its inputs is there; empty when none is."""
        inputs, _, code = key.partition("-")
        twins = (self.runs / STAGES).glob(f"{name}-{inputs}-*") if code else ()
        return "other code made the one on disk" if any(map(Path.is_dir, twins)) else ""

    def scratch(self, name: str, key: str) -> Path:
        """Where an unfinished stage may keep what it needs to go on, until its maker removes it."""
        return self.runs / STAGES / f".unfinished-{name}-{key}"

    def _make(self, home: Path, make: Callable[[], T], save: Callable[[Path, T], None]) -> None:
        start = time.perf_counter()
        value = make()
        seconds = time.perf_counter() - start
        work = None
        try:
            work = Path(tempfile.mkdtemp(dir=home.parent, prefix=f".making-{os.getpid()}-"))
            save(work, value)
            write_text(work / "stage.json", json.dumps({"seconds": round(seconds, 3)}))
            work.rename(home)
        except (OSError, SafetensorError) as error:
            if not home.is_dir():  # a run beside this one may have finished the same stage first
                raise disk_error(home, error) from error
        finally:
            if work is not None:
                shutil.rmtree(work, ignore_errors=True)

    def _place(self, home: Path, target: Path) -> None:
        """Links a finished stage's files into the run folder; copies where links fail."""
        try:
            for source in sorted(home.rglob("*")):
                if source.is_dir() or source.name == "stage.json":
                    continue
                place = target / source.relative_to(home)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.unlink(missing_ok=True)
                try:
                    os.link(source, place)
                except OSError:
                    shutil.copy2(source, place)
        except OSError as error:
            raise disk_error(target, error) from error

    def write_run(self, record: RunRecord) -> None:
        """Rewrites run.json."""
        write_record(self.folder / "run.json", record)


def sweep_unfinished(runs: Path) -> int:
    """Removes half-made stages whose process is gone; returns how many."""
    left = [path for path in (runs / STAGES).glob(".making-*") if not _alive(path.name)]
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    return len(left)


def _alive(name: str) -> bool:
    """Whether the process that makes `.making-<pid>-…` still runs."""
    pid = name.split("-")[1]
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def free_name(runs: Path, stem: str) -> str:
    """`stem`, or `stem-2`, `stem-3`, … : the first that no run has."""
    name, number = stem, 1
    while (runs / name).exists():
        number += 1
        name = f"{stem}-{number}"
    return name
