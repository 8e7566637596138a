"""Several processes as one run, one per device: what each does, and what all must know.

`accelerate launch -m steerheal run …` or `torchrun -m steerheal run …` starts them. Every process
goes through the whole run and holds the whole model; rows that are written, read or trained on are
shared out, and what comes of them is gathered, so that all go on from the same. The first process,
the leader, alone decides what lies on disk, writes and prints. In a run of one process nothing here
does anything.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
_joined = {"rank": 0, "world": 1}
"""This process's number, and how many there are; one until they are joined."""


def world() -> int:
    """How many processes the run has."""
    return _joined["world"]


def rank() -> int:
    """Which of them this is, from 0."""
    return _joined["rank"]


def leads() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def launched() -> int:
    """How many processes a launcher has started, joined or not."""
    stated = os.environ.get("WORLD_SIZE", "")
    return int(stated) if stated.isdecimal() and int(stated) else 1


@contextmanager
def together() -> Iterator[None]:
    """The processes of a launcher joined, each on a device of its own; apart again at the end."""
    if launched() == 1:
        yield
        return
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    assert state.num_processes == launched(), "the launcher's processes are not joined"
    _joined.update(rank=state.process_index, world=state.num_processes)
    try:
        yield
    finally:
        _joined.update(rank=0, world=1)
        state.destroy_process_group()


def share_of(indices: Sequence[int]) -> list[int]:
    """This process's share of the indices: every so-manieth, so that shares are alike."""
    return list(indices[rank() :: world()])


def merged(own: Mapping[int, T]) -> dict[int, T]:
    """What every process has, by index; each index is one process's."""
    if world() == 1:
        return dict(own)
    from torch import distributed

    found: list[dict[int, T]] = [{} for _ in range(world())]
    distributed.all_gather_object(found, dict(own))
    return {index: value for part in found for index, value in part.items()}


def lent(tensor: "Tensor") -> "Tensor":
    """A tensor as others can take it: what is on this process's device is not on theirs."""
    return tensor if world() == 1 else tensor.cpu()


def told(value: T) -> T:
    """The leader's value, on every process."""
    if world() == 1:
        return value
    from torch import distributed

    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def wait() -> None:
    """Until every process has come here."""
    if world() > 1:
        told(None)
        merged({})


def summed(tensor: "Tensor") -> None:
    """The tensor becomes the sum over the processes, in place."""
    if world() > 1:
        from torch import distributed

        distributed.all_reduce(tensor)
