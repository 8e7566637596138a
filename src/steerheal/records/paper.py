"""Which record a paper was made from, and what its files held when they were written."""

from steerheal.records.base import Record

PAPER_VERSION = 1


class PaperRecord(Record):
    """Where a paper is from."""

    version: int = PAPER_VERSION
    of: str
    """The run or comparison, with its model; a paper of another one is not overwritten."""
    command: str
    """The line that made that."""
    record: str
    """Digest of its record."""
    files: dict[str, str] = {}
    """Digest of every file of the paper, by its name in the folder."""
