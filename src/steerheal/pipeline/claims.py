"""Which process works where: one at a time in a run's folder, and on a stage.

A claim is a lock that ends with its process, however that ends: nothing has to be cleared away
after a kill, and a folder whose process died before its first record is free again.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from steerheal.disk import MAKING, disk_error
from steerheal.errors import UserError

LOCK = ".lock"
TRIES = 20
"""Attempts at a folder that others remove in between."""


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """The folder of a run, made when absent, for this process alone.

    A folder that still holds no run at the end is removed again.

    Raises:
        UserError: another process works there, or it cannot be made.
    """
    lock = _taken(folder)
    if lock is None:
        raise UserError(
            f"Another steerheal process is at work in {folder}. Wait until it has ended, or give "
            "this run another --name."
        )
    try:
        yield folder
    finally:
        _leave(folder, lock)


@contextmanager
def claimed_free(runs: Path, stem: str) -> Iterator[Path]:
    """As `claimed`: `stem`, or `stem-2`, `stem-3`, …, the first that no run has."""
    folder, lock = _first_free(runs, stem)
    try:
        yield folder
    finally:
        _leave(folder, lock)


def _first_free(runs: Path, stem: str) -> tuple[Path, FileLock]:
    for number in count(1):
        folder = runs / (stem if number == 1 else f"{stem}-{number}")
        lock = _taken(folder) if _is_free(folder) else None
        if lock is None:
            continue
        if _is_free(folder):  # nobody has come and gone in between
            return folder, lock
        _release(lock, folder / LOCK)
    raise AssertionError("names do not end")


@contextmanager
def alone(place: Path, *, waits: Callable[[], None]) -> Iterator[None]:
    """This process alone makes what belongs at `place`; `waits` is called when another does.

    Where the file system refuses a lock, nobody waits: what is made appears whole in any case.
    """
    file = place.with_name(f"{LOCK}-{place.name}")
    lock = FileLock(file)
    with suppress(OSError):
        try:
            lock.acquire(blocking=False)
        except Timeout:
            waits()
            lock.acquire(poll_interval=0.5)
    try:
        yield
    finally:
        _release(lock, file)


def is_alone(place: Path) -> bool:
    """Whether no process is making what belongs at `place`."""
    file = place.with_name(f"{LOCK}-{place.name}")
    lock = FileLock(file)
    try:
        lock.acquire(blocking=False)
    except (Timeout, OSError):
        return False
    _release(lock, file)
    return True


def _taken(folder: Path) -> FileLock | None:
    """The folder's lock; None when another process holds it.

    Raises:
        UserError: the folder cannot be made.
    """
    for attempt in range(TRIES):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / LOCK)
            lock.acquire(blocking=False)
        except Timeout:
            return None
        except OSError as error:
            if not isinstance(error, FileNotFoundError) or attempt == TRIES - 1:
                raise disk_error(folder, error) from error
        else:
            return lock
    return None


def _is_free(folder: Path) -> bool:
    """Whether there is nothing, or a folder that no record, stage or other file is in."""
    try:
        names = [item.name for item in folder.iterdir()]
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return all(name == LOCK or name.startswith(MAKING) for name in names)


def _leave(folder: Path, lock: FileLock) -> None:
    _release(lock, folder / LOCK)
    with suppress(OSError):
        folder.rmdir()  # only an empty one goes
        folder.parent.rmdir()


def _release(lock: FileLock, file: Path) -> None:
    """Gives a lock back; its file goes first, so that whoever waits finds out and takes anew."""
    if lock.is_locked:
        with suppress(OSError):
            file.unlink(missing_ok=True)
        lock.release()
