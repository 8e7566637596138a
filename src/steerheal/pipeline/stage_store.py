"""Finished stages on disk, and the record of the run that they belong to.

A finished stage lives once in `<runs>/.stages/<name>-<key>/` and is linked into every run that
asks for the same key, so that a resumed run, or one that differs only later on, does not repeat
it. It holds a digest of each of its files: one that is cut, lost or overwritten is set aside and
made again.
"""

import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TypeVar, cast

from steerheal import ranks
from steerheal.disk import (
    MAKING,
    disk_error,
    is_left_behind,
    is_old,
    link,
    remove,
    whole_folder,
    write_text,
)
from steerheal.errors import UserError
from steerheal.models.halving import halvings
from steerheal.models.peak import peak
from steerheal.pipeline.claims import alone, is_alone
from steerheal.pipeline.share import Share
from steerheal.pipeline.stage_head import HEAD, StageHead, digests, head_of
from steerheal.records import RunRecord, StageMark
from steerheal.store import RUN, read_run, round_folder, write_record

T = TypeVar("T")
STAGES, UNFINISHED = ".stages", ".unfinished-"


class Damaged(Exception):
    """A finished stage is not what was saved, and is made again."""


class Store:
    """One run's folder and the stages it shares with its neighbours."""

    def __init__(
        self,
        runs: Path,
        name: str,
        *,
        notify: Callable[[StageMark], None],
        note: Callable[[str], None] = lambda _: None,
        share: str = "",
    ) -> None:
        """Opens (or makes) `runs`/`name`.

        Args:
            runs: The folder of runs.
            name: The run's.
            notify: Hears of every stage as it is there.
            note: Hears what else happens to a stage.
            share: URL of where stages are shared with other machines; empty for nowhere.

        Raises:
            UserError: the folder cannot be made, or the URL is of no store.
        """
        self.runs, self.folder = runs, runs / name
        self.marks: list[StageMark] = []
        self._notify, self._note = notify, note
        self._share = Share(share, note) if share and ranks.leads() else None
        try:
            (runs / STAGES).mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(self.folder, error) from error
        self.held = read_run(self.folder) if (self.folder / RUN).is_file() else None
        """The record on disk, as long as it holds more than this run has come to."""
        self._waiting: list[tuple[Path, Path]] = []
        """Stages and their places in the folder, which holds what its record tells of."""

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
        the very same values as an uninterrupted one. A stage that is damaged is set aside and made
        again.
        """
        home = self.runs / STAGES / f"{name}-{key}"
        reused, again, result = home.is_dir(), "", None
        if not ranks.leads():
            reused, again = self._along(make)
        elif reused:
            try:
                result = self._read(home, load)
            except Damaged as error:
                reused, again = False, self._set_aside(home, error)
        if ranks.leads() and not reused:
            with alone(home, waits=lambda: self._note(f"{name} · another run is making it: waits")):
                reused = home.is_dir() or self._is_fetched(home)
                if not reused:
                    again = again or self._by_other_code(name, key)
                    ranks.told((False, again))
                    self._make(home, make, save)
        if ranks.leads() and reused:
            ranks.told((True, again))
        ranks.wait()
        if result is None:
            result = self._read(home, load)
        if self._share is not None:
            self._share.send(home)
        self._place(home, round_folder(self.folder, number))
        head = head_of(home)
        mark = StageMark(
            name=name,
            round=number,
            key=key,
            seconds=head.seconds,
            halved=head.halved,
            memory=head.memory,
            reused=reused,
            made_again=again,
        )
        self.marks.append(mark)
        self._notify(mark)
        return cast(T, result)

    @staticmethod
    def _along(make: Callable[[], object]) -> tuple[bool, str]:
        """On a process that does not lead: makes what the leader makes, which alone keeps it."""
        reused, again = ranks.told((False, ""))
        if not reused:
            make()
        return reused, again

    def beside(self, name: str) -> "Store":
        """A folder in this one with the same listeners; its stages count as this one's."""
        inner = Store(
            self.runs,
            str(self.folder.relative_to(self.runs) / name),
            notify=self._notify,
            note=self._note,
        )
        inner.marks, inner._share = self.marks, self._share
        return inner

    def _is_fetched(self, home: Path) -> bool:
        return self._share is not None and self._share.fetch(home)

    def _by_other_code(self, name: str, key: str) -> str:
        """Why a stage is made although one of its inputs is there; empty when none is."""
        inputs, _, code = key.partition("-")
        twins = (self.runs / STAGES).glob(f"{name}-{inputs}-*") if code else ()
        return "other code made the one on disk" if any(map(Path.is_dir, twins)) else ""

    def scratch(self, name: str, key: str) -> Path:
        """Where an unfinished stage may keep what it needs to go on, until its maker removes it."""
        return self.runs / STAGES / f"{UNFINISHED}{name}-{key}"

    def _make(self, home: Path, make: Callable[[], T], save: Callable[[Path, T], None]) -> None:
        start = time.perf_counter()
        with halvings() as halved, peak() as held:
            value = make()
        seconds = time.perf_counter() - start
        with whole_folder(home, shared=True) as work:
            save(work, value)
            head = StageHead(
                seconds=round(seconds, 3),
                files=digests(work),
                halved=min(halved, default=0),
                memory=held.bytes,
            )
            write_text(work / HEAD, head.model_dump_json())

    def _read(self, home: Path, load: Callable[[Path], T]) -> T:
        """What a finished stage holds.

        Raises:
            Damaged: it is not what was saved.
            UserError: it may not be read.
        """
        try:
            if digests(home) != head_of(home).files:
                raise Damaged("its files are not those that were saved")
            return load(home)
        except Damaged:
            raise
        except Exception as error:
            if isinstance(error.__cause__ or error, PermissionError):
                raise UserError(f"{home} may not be read: change its permissions.") from error
            raise Damaged(str(error).partition("\n")[0] or type(error).__name__) from error

    def _set_aside(self, home: Path, why: Exception) -> str:
        """Moves a damaged stage out of the way; returns why it is made again."""
        places = (home.with_name(f".damaged-{home.name}-{number}") for number in count(1))
        place = next(place for place in places if not place.exists())
        try:
            home.rename(place)
        except FileNotFoundError:
            pass  # a run beside this one has done it
        except OSError as error:
            raise disk_error(home, error) from error
        self._note(f"{home.name} is damaged ({why}): set aside as {place}")
        return "the one on disk was damaged"

    def _place(self, home: Path, target: Path) -> None:
        """Links a finished stage's files into the run folder, once its record is this run's."""
        self._waiting.append((home, target))
        if self.held is None and ranks.leads():
            self._put()

    def _put(self) -> None:
        for home, target in self._waiting:
            try:
                for name in head_of(home).files:
                    link(home / name, target / name)
            except OSError as error:
                raise disk_error(target, error) from error
        self._waiting.clear()

    def write_run(self, record: RunRecord) -> None:
        """Rewrites run.json, unless the one on disk holds more: that stays until caught up with."""
        if self.held is not None and holds_less(record, self.held):
            return
        self.held = None
        if ranks.leads():
            self._put()
            write_record(self.folder / RUN, record)


def holds_less(record: RunRecord, other: RunRecord) -> bool:
    """Whether a run's record tells less than another of the same run.

    A round that was ended after a check, as asked, is one to go on from.
    """
    whole, others = (
        [row for row in one.rounds if row.outcome != "stopped"] for one in (record, other)
    )
    ended = other.status == "finished" and len(others) == len(other.rounds)
    if ended and record.status != "finished":
        return True
    told = (len(whole), len(record.rounds), record.base is not None)
    return told < (len(others), len(other.rounds), other.base is not None)


def sweep(folder: Path) -> int:
    """Removes files that killed processes left half-written in a run's folder; returns how many."""
    left = [path for path in folder.rglob(f"{MAKING}*") if is_left_behind(path)]
    for path in left:
        remove(path)
    return len(left)


def sweep_unfinished(runs: Path) -> int:
    """Removes what killed processes left half made and no resumed run can use; returns how many.

    An unfinished heal is of use until it is finished, or too old.
    """
    stages = runs / STAGES
    left = [path for path in stages.glob(f"{MAKING}*") if is_left_behind(path)]
    for path in stages.glob(f"{UNFINISHED}*"):
        home = stages / path.name.removeprefix(UNFINISHED)
        if (home.is_dir() or is_old(path)) and is_alone(home):
            left.append(path)
    for path in left:
        remove(path)
    return len(left)
