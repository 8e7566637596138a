"""Who does a command's jobs: this process alone, several on this machine, or a Ray cluster."""

import os
import socket
from functools import partial
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from steerheal.errors import UserError, no_cluster
from steerheal.extras import refuse_absent

if TYPE_CHECKING:
    from steerheal.pipeline.jobs import Workers

Count = Annotated[int, Field(ge=1, le=1_000)]
"""Of jobs at a time."""
KNOWN = ("auto", "local")
"""What an address of a cluster may be besides a place."""
CALL = 5.0
"""Seconds that a cluster has to answer."""


def refuse_without_ray(address: str) -> None:
    """Refuses a cluster where Ray is not installed, or where nobody is at its HOST:PORT.

    Ray itself would wait for a minute, and a comparison loads its model first.

    Raises:
        UserError: with what to install or to start.
    """
    if not address:
        return
    refuse_absent("ray", "--ray")
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        try:
            socket.create_connection((host, int(port)), timeout=CALL).close()
        except (OSError, OverflowError) as error:
            raise no_cluster(address, error) from error
    elif address not in KNOWN and "://" not in address:
        raise UserError(
            f"--ray {address}: allowed are {', '.join(KNOWN)}, HOST:PORT and ray://HOST:PORT."
        )


def workers_of(count: int, address: str) -> "Workers | None":
    """Who does the jobs; None is this process alone.

    Args:
        count: Most jobs at a time.
        address: A Ray cluster's; empty for processes of this machine, among which its GPUs are
            shared out.
    """
    if address:
        from steerheal.pipeline.on_ray import on_ray

        return partial(on_ray, workers=count, address=address)
    if count > 1:
        from torch import cuda

        from steerheal.models.gpu_share import shared_by
        from steerheal.pipeline.on_processes import DEVICES, on_processes

        found = cuda.device_count()
        seen = os.environ.get(DEVICES) or ",".join(map(str, range(found)))
        devices = seen.split(",")[:found] if found > 1 else ()
        return partial(
            on_processes, workers=count, devices=devices, also=partial(shared_by, devices=found)
        )
    return None
