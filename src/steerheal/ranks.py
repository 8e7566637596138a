"""Several processes as one run, one per device: what each does, and what all must know.

`accelerate launch -m steerheal run …` or `torchrun -m steerheal run …` starts them. Every process
goes through the whole run and holds the whole model; rows that are written, read or trained on are
shared out, and what comes of them is gathered, so that all go on from the same. The first process,
the leader, alone decides what lies on disk, writes and prints. In a run of one process nothing here
does anything.

Where the processes hold one model together, every forward is one of all of them: each does the same
work on the same rows, and what the leader comes to is what all go on from, since a last bit that
differs between devices would lead them apart.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
_joined = {"rank": 0, "world": 1, "alike": False}
"""This process's number, how many there are, and whether all do the same; one until joined."""


def processes() -> int:
    """How many processes the run has."""
    return _joined["world"]


def world() -> int:
    """Among how many processes rows are shared out: one where all work on the same."""
    return 1 if alike() else processes()


def alike() -> bool:
    """Whether several processes make every forward together, on the same rows."""
    return _joined["alike"]


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


def command() -> list[str]:
    """How this program is started with as many processes here as there are."""
    here = os.environ.get("LOCAL_WORLD_SIZE", "")
    if launched() == 1 or not here.isdecimal():
        return ["steerheal"]
    return ["torchrun", "--nproc-per-node", here, "-m", "steerheal"]


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
        _joined.update(rank=0, world=1, alike=False)
        state.destroy_process_group()


def work_alike() -> None:
    """From here on, while they are joined, all processes do the same."""
    _joined["alike"] = processes() > 1


@contextmanager
def in_turn() -> Iterator[None]:
    """One process after another, for what there is no room to do at once."""
    for _ in range(rank()):
        wait()
    try:
        yield
    finally:
        for _ in range(rank(), processes()):
            wait()


def share_of(indices: Sequence[int]) -> list[int]:
    """This process's share of the indices: every so-manieth, so that shares are alike."""
    return list(indices if world() == 1 else indices[rank() :: world()])


def merged(own: Mapping[int, T]) -> dict[int, T]:
    """What every process has, by index; each index is one process's, or all of them have it."""
    if world() == 1:
        return told(dict(own))
    return {index: value for part in _of_all(dict(own)) for index, value in part.items()}


def _of_all(value: T) -> list[T]:
    from torch import distributed

    found = [value] * processes()
    distributed.all_gather_object(found, value)
    return found


def lent(tensor: "Tensor") -> "Tensor":
    """A tensor as others can take it: what is on this process's device is not on theirs."""
    return tensor if processes() == 1 else tensor.cpu()


def told(value: T) -> T:
    """The leader's value, on every process."""
    if processes() == 1:
        return value
    from torch import distributed

    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def least(value: float) -> float:
    """The least of all processes' values, where all have to do the same with it."""
    return min(_of_all(value)) if alike() else value


def wait() -> None:
    """Until every process has come here."""
    if processes() > 1:
        _of_all(None)


def summed(tensor: "Tensor") -> None:
    """The tensor becomes the sum over the processes' shares, in place."""
    if world() > 1:
        from torch import distributed

        distributed.all_reduce(tensor)


def follow(tensor: "Tensor") -> None:
    """The tensor becomes the leader's, in place, where all processes do the same."""
    if alike():
        from torch import distributed

        distributed.broadcast(tensor, src=0)
