"""What a finished stage says of itself, and the digests that tell whether it is whole."""

import hashlib
from pathlib import Path

from steerheal.records import Record
from steerheal.store import read_record

HEAD = "stage.json"


class StageHead(Record):
    """What a finished stage says of itself."""

    seconds: float
    """How long it took to make."""
    files: dict[str, str]
    """Digest of every file by its path in the stage."""
    halved: int = 0
    """Rows of the smallest batch that was tried after memory ran out; 0 where it never did."""
    memory: int = 0
    """Most bytes that were held while it was made, weights included; 0 where that is unknown."""


def head_of(home: Path) -> StageHead:
    """The head of a finished stage."""
    return read_record(home / HEAD, StageHead)


def digest(content: bytes) -> str:
    """A file's."""
    return hashlib.sha256(content).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """Digest of every file of a stage, by its path in it."""
    return {
        path.relative_to(folder).as_posix(): digest(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != HEAD
    }
