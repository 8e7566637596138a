"""Float32 products on a CPU from weights in the processor's own layout.

oneDNN multiplies a weight that has been reordered into blocks two to three times as fast as the
rows that a linear layer holds, most where few rows are read at once (x86, 2 cores; benchmarks). The
weight stays where it is, for all that reads or writes it; the copy is made when a layer is first
read, and anew once its weight has changed. A product that needs a gradient goes the ordinary way.

What is written through `weight.data` in place, as PEFT merges, is a change that PyTorch does not
count and a copy would miss. So a model that is loaded for anybody's use has ordinary layers, and
only the commands that write into weights through `state.fold` alone reorder their own.
"""

import weakref
from typing import Any, NamedTuple

import psutil
import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerheal.models.model import ChatModel

LEAST = 1 << 14
"""Numbers in a weight below which a product costs no more than its call."""
ROOM = 4
"""How many times the weights the machine's memory must hold before they are kept twice."""
OPS: Any = torch.ops.mkldnn


class _Copy(NamedTuple):
    """A weight's copy, and of which weight it is, as it was when the copy was made."""

    blocks: Tensor
    source: Tensor
    """The numbers themselves: while they are held, no others can lie at their place."""
    version: int


_COPIES: "weakref.WeakKeyDictionary[nn.Module, _Copy]" = weakref.WeakKeyDictionary()
"""Not in the layer, which can be copied; oneDNN's blocks cannot."""


class Reordered(nn.Linear):
    """A linear layer that reads its weight's copy wherever no gradient is asked for."""

    def forward(self, input: Float[Tensor, "*N I"]) -> Float[Tensor, "*N O"]:
        """x·Wᵀ + b."""
        trains = torch.is_grad_enabled() and (input.requires_grad or self.weight.requires_grad)
        if trains or not input.numel():
            return super().forward(input)
        return OPS._linear_pointwise(input, _blocks(self), self.bias, "none", [], "")


def _blocks(layer: nn.Linear) -> Tensor:
    """The copy of a layer's weight as it is now."""
    weight, held = layer.weight, _COPIES.get(layer)
    if (
        held is None
        or held.version != weight._version
        or held.source.data_ptr() != weight.data_ptr()
    ):
        source = weight.detach()
        held = _Copy(OPS._reorder_linear_weight(source, None), source, weight._version)
        _COPIES[layer] = held
    return held.blocks


def reorder(chat: ChatModel) -> None:
    """Lets every large linear layer read its weight in the processor's layout, if it pays here.

    It does on an x86 processor, for float32 weights that the machine's memory holds several times,
    of which this process has the whole.
    """
    if not chat.sharded:
        reorder_layers(chat.net)


def reorder_layers(net: nn.Module) -> None:
    """The same, whatever the module."""
    layers = [
        layer
        for layer in net.modules()
        if type(layer) is nn.Linear and layer.weight.numel() >= LEAST
    ]
    if not all(map(_fit, layers)) or not _there():
        return
    if ROOM * sum(p.numel() * p.itemsize for p in net.parameters()) > psutil.virtual_memory().total:
        return
    for layer in layers:
        layer.__class__ = Reordered


def reordered_in(net: nn.Module) -> int:
    """Numbers in the weights that are kept twice."""
    return sum(layer.weight.numel() for layer in net.modules() if isinstance(layer, Reordered))


def _fit(layer: nn.Linear) -> bool:
    weight = layer.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32


def _there() -> bool:
    """Whether PyTorch has the two functions, which it keeps for its own compiler, and they work."""
    if not (torch.backends.mkldnn.is_available() and torch.cpu.get_capabilities().get("avx2")):
        return False
    try:
        with torch.no_grad():
            x, weight = torch.ones(2, 16), torch.eye(16)
            blocks = OPS._reorder_linear_weight(weight, None)
            return torch.equal(OPS._linear_pointwise(x, blocks, None, "none", [], ""), x)
    except (AttributeError, RuntimeError):
        return False
