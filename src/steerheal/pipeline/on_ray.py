"""Runs of a sweep on Ray's workers, of this machine or of a cluster; nothing else asks for Ray.

A worker that dies is replaced by Ray, and its run goes on from the stages that are finished. What
two workers need at once is made by one of them (`pipeline/claims.py`).
"""

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import ray
import torch
from ray.exceptions import RayError

from steerheal.console import Console
from steerheal.errors import UserError, first_line
from steerheal.pipeline.sweeping import Job, Outcome, attempt

RETRIES = 3
"""Times that a run is begun anew after its worker died."""
CALL = 5.0
"""Seconds that a cluster has to answer."""
OBJECTS = 100_000_000
"""Bytes of shared memory for what is sent to workers: jobs are small, results lie on the disk."""
PATIENCE = 20.0
"""Seconds that interrupted runs have to leave a readable record."""


def on_ray(jobs: Sequence[Job], workers: int, address: str) -> Iterator[Outcome]:
    """Makes the jobs, `workers` at a time.

    Args:
        jobs: Runs to make; their folder is one that every worker sees.
        workers: Most runs at a time.
        address: A cluster's, `auto` for the one that this machine is part of; empty starts one
            here that ends with the sweep.

    Raises:
        UserError: no cluster answers there.
    """
    if not jobs:
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    _connect(workers, address)
    threads = 0 if address else _threads(workers)
    share = min(1.0, ray.cluster_resources().get("GPU", 0.0) / workers)
    work = ray.remote(num_cpus=1, num_gpus=share, max_retries=RETRIES)(_attempt)
    waiting, busy, here = list(reversed(jobs)), {}, Path.cwd()
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                job = waiting.pop()
                busy[work.remote(job, here, threads)] = job
            for ready in ray.wait(list(busy), num_returns=1)[0]:
                yield _ended(ready, busy.pop(ready))
    finally:
        for running in busy:
            with suppress(RayError):
                ray.cancel(running)
        if busy:
            ray.wait(list(busy), num_returns=len(busy), timeout=PATIENCE)
        ray.shutdown()


def _attempt(job: Job, here: Path, threads: int) -> Outcome:
    """In a worker: a run, whose progress goes to Ray's own logs; relative paths begin `here`."""
    with suppress(OSError):
        os.chdir(here)
    if threads:
        torch.set_num_threads(threads)
    return attempt(job, Console())


def _ended(ready: "ray.ObjectRef[Outcome]", job: Job) -> Outcome:
    try:
        return ray.get(ready)
    except RayError as error:
        return Outcome(job.name, f"its worker was lost {RETRIES + 1} times: {first_line(error)}")


def _connect(workers: int, address: str) -> None:
    try:
        if address:
            _reach(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                num_cpus=workers, include_dashboard=False, log_to_driver=False,
                logging_level=logging.ERROR, object_store_memory=OBJECTS,
            )  # fmt: skip
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        where = f"at {address}" if address else "on this machine"
        raise UserError(
            f"--ray: no Ray cluster {where} ({first_line(error)}) Start one with "
            "`ray start --head`, and give its address as HOST:PORT, or auto on the same machine."
        ) from error


def _reach(address: str) -> None:
    """Knocks at HOST:PORT, where Ray itself would wait for a minute.

    Raises:
        OSError: nobody is there.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=CALL).close()


def _threads(workers: int) -> int:
    """Threads that each of several runs on this machine computes with."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return (
        int(given) if given.isdigit() else max(1, (psutil.cpu_count(logical=False) or 1) // workers)
    )
