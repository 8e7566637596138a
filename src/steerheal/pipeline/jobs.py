"""Work that may be shared out among processes: what a job is, and how one ends.

Nothing here loads a model, so that a process is there before it has to wait for one.
"""

import os
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import psutil

from steerheal.console import Console
from steerheal.errors import UserError

RETRIES = 3
"""Times that a job is begun anew after its worker died."""
PATIENCE = 20.0
"""Seconds that interrupted jobs have to leave a readable record."""
THREADS = "OMP_NUM_THREADS"


class Job(Protocol):
    """What a worker gets: it leaves its results on the disk, and finds what is finished there."""

    @property
    def name(self) -> str:
        """What it is called; no two jobs are called alike."""
        ...

    def do(self, console: Console) -> None:
        """Makes what is not there yet."""
        ...


class Outcome(NamedTuple):
    """How a job ended."""

    name: str
    error: str = ""
    trace: str = ""
    """Where a bug showed; empty for what the user must change."""


Workers = Callable[[Sequence[Job]], Iterable[Outcome]]
"""Do every job, in any order, and say how each ended."""


def attempt(job: Job, console: Console) -> Outcome:
    """Does a job; whatever it fails by is said and not raised."""
    try:
        job.do(console)
    except UserError as error:
        return Outcome(job.name, str(error))
    except Exception as error:  # noqa: BLE001  the other jobs go on, and who shares out tells of it
        return Outcome(job.name, f"{type(error).__name__}: {error}", traceback.format_exc())
    return Outcome(job.name)


def lost(job: Job, why: str = "") -> Outcome:
    """A job whose workers all died."""
    return Outcome(job.name, f"its worker was lost {RETRIES + 1} times{why and ': '}{why}")


def threads_of(workers: int) -> int:
    """Threads that each of several workers on this machine computes with."""
    given = os.environ.get(THREADS, "")
    return (
        int(given) if given.isdigit() else max(1, (psutil.cpu_count(logical=False) or 1) // workers)
    )
