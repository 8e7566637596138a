"""Jobs on the workers of a Ray cluster; nothing else asks for Ray.

A worker that dies is replaced by Ray, and its job goes on from the stages that are finished. What
two workers need at once is made by one of them (`pipeline/claims.py`).
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import ray
import torch
from ray.exceptions import RayError

from steerheal.console import Console
from steerheal.errors import first_line, no_cluster
from steerheal.pipeline.jobs import PATIENCE, RETRIES, Job, Outcome, attempt, lost, threads_of

LOCAL = "local"
"""The address of a cluster that is started here, and ends with the command."""
OBJECTS = 100_000_000
"""Bytes of shared memory for what is sent to workers: jobs are small, results lie on the disk."""


def on_ray(jobs: Sequence[Job], workers: int, address: str) -> Iterator[Outcome]:
    """Does the jobs, `workers` at a time.

    Args:
        jobs: What is done, in a folder that every worker sees.
        workers: Most jobs at a time.
        address: A cluster's, `auto` for the one that this machine is part of, or `local`.

    Raises:
        UserError: no cluster answers there.
    """
    if not jobs:
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    _connect(workers, address)
    threads = threads_of(workers) if address == LOCAL else 0
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
    """In a worker: a job, whose progress goes to Ray's own logs; relative paths begin `here`."""
    with suppress(OSError):
        os.chdir(here)
    if threads:
        torch.set_num_threads(threads)
    return attempt(job, Console())


def _ended(ready: "ray.ObjectRef[Outcome]", job: Job) -> Outcome:
    try:
        return ray.get(ready)
    except RayError as error:
        return lost(job, first_line(error))


def _connect(workers: int, address: str) -> None:
    try:
        if address != LOCAL:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                address=LOCAL, num_cpus=workers, include_dashboard=False, log_to_driver=False,
                logging_level=logging.ERROR, object_store_memory=OBJECTS,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        raise no_cluster(address, error) from error
