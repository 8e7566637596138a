"""Ragged token rows in dense batches: padding, batches of similar length, memory that runs out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import psutil
import torch
from jaxtyping import Int
from torch import Tensor

from steerheal.errors import first_line
from steerheal.models import halving
from steerheal.ranks import alike, merged, rank, world

TOKEN_BUDGET = {"cpu": 4096, "cuda": 65536}
LAUNCH = {"cpu": 0, "cuda": 2048}
"""Tokens that a forward reads in the time that starting it takes: less is not worth another one."""


class LeftPadded(NamedTuple):
    """Rows aligned at their end, for decoding; positions ignore the padding."""

    ids: Int[Tensor, "B T"]
    mask: Int[Tensor, "B T"]
    positions: Int[Tensor, "B T"]


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> LeftPadded:
    """Token rows padded at the start."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(list(row))
        mask[i, width - len(row) :] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return LeftPadded(ids.to(device), mask.to(device), positions.to(device))


def right_padded(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device
) -> Int[Tensor, "B T"]:
    """Token rows padded at the end: causal attention needs no mask, the padding sees, unseen."""
    ids = torch.full((len(rows), max(map(len, rows))), pad)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(list(row))
    return ids.to(device)


WASTE = 0.15
"""Share of padding from which rows are split by length; a single row has none."""
SHARED = 8
"""Tokens that rows must begin with in common before their prefix is read once for all."""
NO_MEMORY = (
    "out of memory", "not enough memory", "can't allocate memory",
    "STATUS_ALLOC_FAILED",
    "mha_graph.execute",
)  # fmt: skip
"""What errors say that are raised where memory ran out: PyTorch's allocators, cuBLAS and cuDNN that
found none to begin with, and cuDNN's attention, whose graph fails where its workspace does not fit.
"""


def shared_prefix(rows: Sequence[Sequence[int]], limit: int | None = None, launch: int = 0) -> int:
    """How many tokens all rows begin with, leaving each at least one; 0 when it is not worth it.

    Reading them once takes a forward, which costs as much as `launch` tokens.
    """
    if len(rows) < 2:
        return 0
    ordered = sorted(list(row) for row in rows)
    low, high = ordered[0], ordered[-1]  # whatever these two share, all rows between them share
    common = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    start = min(common, min(map(len, rows)) - 1 if limit is None else limit)
    return start if start >= SHARED and start * (len(rows) - 1) >= launch else 0


def by_length(
    lengths: Sequence[int], budget: int, opening: int = 0, launch: int = 0
) -> Iterator[list[int]]:
    """Indices in batches of similar length, each at most `budget` tokens wide and deep.

    Padding is at most `WASTE` of what a batch reads, the opening that its rows share once, or
    `launch` tokens.
    """
    batch: list[int] = []
    used = 0
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        count, own = len(batch) + 1, lengths[index] - opening
        padding = own * count - used - own
        padded = padding > max(launch, WASTE * (opening + own * count))
        if batch and (lengths[index] * count > budget or padded):
            yield batch
            batch, used = [], 0
        batch.append(index)
        used += own
    if batch:
        yield batch


def launch_cost(device: torch.device) -> int:
    """Tokens that a forward reads in the time that starting it takes."""
    return LAUNCH.get(device.type, LAUNCH["cpu"])


def token_budget(device: torch.device) -> int:
    """Tokens in one forward that keep the device busy without filling its memory."""
    return TOKEN_BUDGET.get(device.type, TOKEN_BUDGET["cpu"])


def free_bytes(device: torch.device) -> float:
    """Bytes that this process could still take on the device, of its part where it has one."""
    if device.type != "cuda":
        return float(psutil.virtual_memory().available)
    free, whole = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device)
    part = int(torch.cuda.get_per_process_memory_fraction(device.index) * whole)
    return float(max(0, min(free, part - held)) + held - torch.cuda.memory_allocated(device))


def ran_out(rows: int) -> None:
    """Memory has run out, and so many rows or positions are next: makes room, and tells it."""
    halving.tell(rows)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def shrinking(indices: list[int], work: Callable[[list[int]], None]) -> None:
    """Runs `work` on the indices, in halves where memory runs out; a single index may fail."""
    try:
        work(indices)
        return
    except RuntimeError as error:
        if len(indices) == 1 or not out_of_memory(error):
            raise
    half = len(indices) // 2
    ran_out(len(indices) - half)
    shrinking(indices[:half], work)
    shrinking(indices[half:], work)


@contextmanager
def all_or_none() -> Iterator[None]:
    """What each process of a run does alone: memory that runs out on one has run out on all.

    Raises:
        torch.OutOfMemoryError: on every process, before any goes on to what they do together.
    """
    said = ""
    try:
        yield
    except RuntimeError as error:
        if world() == 1 or not out_of_memory(error):
            raise
        said = first_line(error)
    for number, what in merged({rank(): said}).items():
        if what:
            raise torch.OutOfMemoryError(f"process {number}: {what}")


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a device or the host ran out of memory, so that less at once may do.

    Processes that make a forward together cannot leave it alone: there it is an error like others.
    """
    text = str(error)
    return not alike() and (
        isinstance(error, torch.OutOfMemoryError) or any(part in text for part in NO_MEMORY)
    )
