"""A worker's part of a GPU's memory, where several share one.

Without it each worker's allocator keeps what it once had, until one of them finds no memory for a
single row. Within a part of its own memory runs out at a worker's own expense, and its batch is
halved.
"""

import math
import os

import torch

SHARE = "STEERHEAL_GPU_SHARE"
"""Names the part in a worker's surroundings, 0 to 1."""
SHARED_OUT = 0.9
"""Of a GPU's memory; the rest is for what CUDA itself takes in every process."""


def shared_by(workers: int, devices: int) -> dict[str, str]:
    """What each worker's surroundings say of its part; nothing where it has a device of its own."""
    each = math.ceil(workers / devices) if devices else 1
    return {SHARE: f"{SHARED_OUT / each:.4f}"} if each > 1 else {}


def take_share(device: torch.device) -> None:
    """Holds this process to its part of the device, where it has been given one."""
    if device.type == "cuda" and (share := os.environ.get(SHARE)):
        torch.cuda.set_per_process_memory_fraction(float(share), device.index)
