"""One model held by several processes: each has a part of every decoder block's weights.

PyTorch's FSDP2 puts a block together on every device while it is read, forwards and backwards, and
lets go of it again. Embedding, head and last norm stay whole on each, and so do adapters, which
come later. Nothing can be written into weights of which a process has a part only.

Source: Zhao et al. 2023, arXiv:2304.11277; `torch.distributed.fsdp.fully_shard`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn
from torch.distributed import get_backend
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from steerheal.errors import UserError
from steerheal.models.model import ChatModel, find_blocks
from steerheal.ranks import processes, work_alike

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
"""What processes speak through, by where their weights lie."""
GATHERED = 2
"""Blocks that are whole on a device at once: the one that is read, and the next."""


def mesh_over(device: torch.device) -> DeviceMesh:
    """The processes' devices; all of them have to ask.

    Raises:
        UserError: the processes cannot exchange weights there, or all would take the same GPU.
    """
    own = device.type != "cuda" or device.index in (None, torch.cuda.current_device())
    if get_backend() != BACKENDS.get(device.type) or not own:
        raise UserError(
            f"--model.shard cannot share weights on {device} among processes that speak through "
            f"{get_backend()}, each with a device of its own. Use --model.device auto: a GPU for "
            "each process, or the CPU where there is none."
        )
    return init_device_mesh(device.type, (processes(),))


def spread(net: PreTrainedModel, mesh: DeviceMesh, device: torch.device) -> None:
    """Leaves this process its part of the blocks, and moves that and the rest to its device.

    Block by block, so that the device never holds more than one whole. It waits for nobody. From
    then on every forward is one of all processes.
    """
    whole = set(net.parameters()) - set(find_blocks(net).parameters())
    for block in find_blocks(net):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(net.get_decoder(), mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    net.to(device)  # pyright: ignore[reportArgumentType]
    work_alike()


@contextmanager
def gathered(block: nn.Module) -> Iterator[None]:
    """A block's weights whole, for code that runs its parts by themselves."""
    if not isinstance(block, FSDPModule):
        yield
        return
    block.unshard()
    try:
        yield
    finally:
        block.reshard()


def elsewhere(chat: ChatModel) -> tuple[int, int]:
    """How many parameters lie with other processes, and how many of these come here at once."""
    if not chat.sharded:
        return 0, 0
    whole = sum(weight.numel() for weight in chat.blocks.parameters())
    away = whole - sum(cast(DTensor, w).to_local().numel() for w in chat.blocks.parameters())
    return away, away * min(GATHERED, len(chat.blocks)) // len(chat.blocks)
