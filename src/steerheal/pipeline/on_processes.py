"""Jobs on processes of this machine, each of which does one after another.

A process that dies is replaced, and its job goes on from the stages that are finished. What two
need at once is made by one of them (`pipeline/claims.py`).
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import cycle
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from threading import Thread
from types import FrameType
from typing import NoReturn

from steerheal.console import Console
from steerheal.pipeline.jobs import (
    PATIENCE,
    RETRIES,
    THREADS,
    Job,
    Outcome,
    attempt,
    lost,
    threads_of,
)

DEVICES = "CUDA_VISIBLE_DEVICES"
SPAWN = get_context("spawn")
"""A forked process could use neither the GPU nor the threads of its parent."""


def on_processes(
    jobs: Sequence[Job],
    workers: int,
    devices: Sequence[str] = (),
    also: Callable[[int], Mapping[str, str]] = lambda _: {},
) -> Iterator[Outcome]:
    """Does the jobs, `workers` at a time.

    Args:
        jobs: What is done.
        workers: Most jobs at a time.
        devices: CUDA's names of several devices, of which each worker sees one, in turn.
        also: Environment variables that each of so many workers has besides.
    """
    waiting, deaths = list(reversed(jobs)), Counter[str]()
    shared = also(min(workers, len(jobs)))
    surroundings = [{THREADS: f"{threads_of(workers)}", **shared} for _ in range(workers)]
    for surrounding, device in zip(surroundings, cycle(devices), strict=False):
        surrounding[DEVICES] = device
    at_work: list[_Worker] = []
    idle: list[_Worker] = []
    try:
        while waiting or at_work:
            while waiting and len(at_work) < workers:
                at_work.append(idle.pop() if idle else _Worker(surroundings.pop()))
                at_work[-1].give(waiting.pop())
            ready = connection.wait([worker.pipe for worker in at_work])
            for worker in [worker for worker in at_work if worker.pipe in ready]:
                at_work.remove(worker)
                job, ended = worker.job, worker.ended()
                if ended is not None:
                    idle.append(worker)
                    yield ended
                    continue
                worker.end(0)
                surroundings.append(worker.surroundings)
                deaths[job.name] += 1
                if deaths[job.name] > RETRIES:
                    yield lost(job)
                else:
                    waiting.append(job)
    finally:
        left = [*at_work, *idle]
        for worker in left:
            worker.process.terminate()
        until = time.monotonic() + PATIENCE
        for worker in left:
            worker.end(until - time.monotonic())


class _Worker:
    """A process at the other end of a pipe, that gets jobs and sends how they ended."""

    def __init__(self, surroundings: dict[str, str]) -> None:
        self.job: Job
        self.surroundings = surroundings
        self.pipe, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=_serve, args=(theirs,), daemon=True)
        with _born_into(surroundings):
            self.process.start()
        theirs.close()  # so that the pipe ends with the process

    def give(self, job: Job) -> None:
        self.job = job
        with suppress(OSError):  # one that has died says so when it is asked
            self.pipe.send(job)

    def ended(self) -> Outcome | None:
        """How its job ended; None where the process died in it."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            return None

    def end(self, patience: float) -> None:
        """Waits for the process so many seconds, and ends it."""
        self.process.join(max(0.0, patience))
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()


@contextmanager
def _born_into(surroundings: Mapping[str, str]) -> Iterator[None]:
    """Processes that start inside have these environment variables, and hear no Ctrl-C.

    The terminal sends that to all; it is for the parent, which tells its workers itself.
    """
    before = {name: os.environ.pop(name, None) for name in surroundings}
    os.environ.update(surroundings)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def _serve(pipe: Connection) -> None:
    """In a worker: does what comes through the pipe until that ends."""
    Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            job: Job = pipe.recv()
            signal.signal(signal.SIGTERM, _interrupt)
            outcome = attempt(job, Console(of=job.name))
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            pipe.send(outcome)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    """Ends the job as Ctrl-C would; a second signal must not disturb what it leaves."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    """A worker whose parent was killed has nobody to tell how its job ended."""
    parent = parent_process()
    assert parent is not None, "a worker is started by another process"
    parent.join()
    os._exit(1)
