"""Files and folders that appear whole or not at all, and what is said when a disk refuses.

What is being written lies beside its place under a name that tells its writer: `.making-`, host,
process, that process's start and a number. A reader never sees it, and what a killed process left
can be told from what a living one is at work on.
"""

import errno
import itertools
import os
import platform
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import psutil
from safetensors import SafetensorError

from steerheal.errors import UserError

MAKING = ".making-"
STALE = 30 * 24 * 3600
"""Seconds after which what another machine has not finished is taken for left behind."""
SURROGATE = re.compile("[\ud800-\udfff]")
SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
ADVICE = {
    (errno.ENOSPC, errno.EDQUOT): (
        "Make room and give the command again, or move the folder of runs to where there is room."
    ),
    (errno.EACCES, errno.EPERM): (
        "You may not write there: change the permissions, or give another place."
    ),
    (errno.EROFS,): "That file system is read-only: give another place.",
    (errno.ENOTDIR, errno.EEXIST): (
        "A part of that path is a file where a folder is needed: give another place."
    ),
    (errno.EISDIR, errno.ENOTEMPTY): "There is a folder in its place: remove it, or give another.",
    (errno.ENAMETOOLONG,): "Give a shorter name or path.",
    (errno.ELOOP,): "Its links go round in a circle: give another place.",
    (errno.EMFILE, errno.ENFILE): "Too many files are open: close other programs, or raise ulimit.",
    (errno.EIO,): "The disk reports a fault of its own: give a place on another one.",
}
"""What to do, by what the system said."""
_numbers = itertools.count()


def disk_error(path: Path, error: Exception) -> UserError:
    """What the user is told when a write fails; the advice is the error's own."""
    said = SYSTEM_ERROR.search(str(error))
    number = getattr(error, "errno", None) or (int(said.group(1)) if said else None)
    what = getattr(error, "strerror", None) or (os.strerror(number) if number else error)
    advice = [text for numbers, text in ADVICE.items() if number in numbers]
    return UserError(
        f"Cannot write {path}: {what}. Nothing is left half-written, and what was finished is "
        f"kept. {' '.join(advice)}".rstrip()
    )


def whole(text: str) -> str:
    """The text with U+FFFD for half a surrogate pair, which no encoding has a place for."""
    return SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all; errors as in `write_bytes`."""
    write_bytes(path, whole(text).encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    work = path.with_name(_unfinished())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with work.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        work.replace(path)
        _settle(path.parent)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        with suppress(OSError):
            work.unlink(missing_ok=True)


@contextmanager
def whole_folder(place: Path, *, shared: bool = False, over: bool = False) -> Iterator[Path]:
    """A folder beside `place` that is renamed to it when the block ends well, else removed.

    Its files get the modes that the umask gives, whoever wrote them. When `shared`, a folder that
    another process has put there meanwhile is as good; `over` puts it in the place of one.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    work = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        work = place.with_name(_unfinished())
        work.mkdir()
        yield work
        _publish(work)
        try:
            if over:
                _in_place_of(place, work)
            else:
                work.rename(place)
        except OSError:
            if not (shared and place.is_dir()):
                raise
        _settle(place.parent)
    except (OSError, SafetensorError) as error:
        raise disk_error(place, error) from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def _in_place_of(place: Path, work: Path) -> None:
    """Puts a finished folder where another may be, which stays if that fails."""
    if not place.exists():
        work.rename(place)
        return
    before = place.with_name(_unfinished())
    place.rename(before)
    try:
        work.rename(place)
    except OSError:
        before.rename(place)
        raise
    shutil.rmtree(before, ignore_errors=True)


def link(source: Path, place: Path) -> None:
    """Puts a finished file at a second place, which never shows half of it; copies if need be.

    Raises:
        OSError: the disk refuses.
    """
    if place.exists() and place.samefile(source):
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    work = place.with_name(_unfinished())
    try:
        try:
            os.link(source, work)
        except OSError:
            shutil.copy2(source, work)
        work.replace(place)
    finally:
        with suppress(OSError):
            work.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Takes a file or a folder away, if the disk lets it."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def is_left_behind(path: Path) -> bool:
    """Whether nobody can still be at work on something unfinished.

    A process of this machine is asked for; what another one does cannot be seen, and is given time.
    """
    try:
        host, process, start, _ = path.name.removeprefix(MAKING).split("+")
        if host == _host():
            return not _lives(int(process), int(start))
    except ValueError:
        pass  # another version's name
    return is_old(path)


def is_old(path: Path) -> bool:
    """Whether nothing has touched it for longer than any stage takes."""
    try:
        return time.time() - path.stat().st_mtime > STALE
    except OSError:
        return False


def _unfinished() -> str:
    process = os.getpid()
    return f"{MAKING}{_host()}+{process}+{_start(process)}+{next(_numbers)}"


@cache
def _host() -> str:
    return re.sub(r"[^\w.-]", "_", platform.node())[:64] or "here"


@cache
def _start(process: int) -> int:
    return int(psutil.Process(process).create_time())


def _lives(process: int, start: int) -> bool:
    try:
        return abs(psutil.Process(process).create_time() - start) < 2
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def _publish(folder: Path) -> None:
    """Gives a private folder's content the modes of an ordinary one, and sends it to the disk."""
    mode = stat.S_IMODE(folder.stat().st_mode)  # what the umask leaves of a folder's
    for item in sorted(folder.rglob("*"), reverse=True):
        if not item.is_symlink():
            with suppress(PermissionError):
                item.chmod(mode if item.is_dir() else mode & 0o666)
            _settle(item)
    _settle(folder)


def _settle(path: Path) -> None:
    """Sends a finished file, or a folder's list of names, to the disk where that can be asked."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
