"""A device without float64, as Apple's GPUs are: it raises wherever one would.

A tensor on it wraps one on the CPU, and every operator runs there. Two things are errors, as they
are on such a device: a float64 tensor on it, and operators between it and the CPU. PyTorch is told
that the device is `meta`, the one kind that needs no driver.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
MIXES = ("_to_copy", "to", "copy_", "index", "index_put_", "_index_put_impl_")
"""Operators that take tensors of both: copies, and CPU indices."""


class Narrow(Tensor):
    """A tensor on the device."""

    held: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Narrow":
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        made.held = inner
        return made

    def tolist(self) -> Any:
        return self.held.tolist()

    def __getitem__(self, places: Any) -> Any:
        # PyTorch makes a tensor of a list on `meta` without an operator that could be seen.
        return super().__getitem__(torch.tensor(places) if isinstance(places, list) else places)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Driver(TorchDispatchMode):
    """Sees what makes tensors on the device without being given one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operator on the wrapped tensors."""
    name = func.overloadpacket.__name__
    given = [item for item in tree_flatten((args, kwargs))[0] if isinstance(item, Tensor)]
    ours = [item for item in given if isinstance(item, Narrow)]
    theirs = [item for item in given if not isinstance(item, Narrow) and item.ndim]
    assert not any(item.device == DEVICE for item in theirs), f"{name}: made behind the driver"
    if ours and theirs and name not in MIXES:
        raise RuntimeError(f"{name}: tensors on the CPU and on the device")
    places = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.device)]
    here = places[0].type == DEVICE.type if places else bool(ours)
    if name in ("copy_", "_index_put_impl_", "index_put_", "index"):
        here = isinstance(given[0], Narrow)
    found = func(*tree_map(_plain, args), **tree_map(_plain, kwargs))
    if not here:
        return found
    known = {id(item.held): item for item in ours}
    return tree_map(lambda x: _wrapped(name, x, known) if isinstance(x, Tensor) else x, found)


def _plain(item: Any) -> Any:
    """What the CPU takes for an argument."""
    if isinstance(item, torch.device):
        return torch.device("cpu")
    return item.held if isinstance(item, Narrow) else item


def _wrapped(name: str, found: Tensor, known: dict[int, Narrow]) -> Narrow:
    if found.dtype in (torch.float64, torch.complex128):
        raise TypeError(f"{name}: the device has no float64")
    assert found.device.type == "cpu", (name, found.device)
    return known[id(found)] if id(found) in known else Narrow(found)


@contextmanager
def driver() -> Iterator[None]:
    """The device for the length of the context."""
    make = torch.tensor
    # PyTorch remembers the first answer for good, and models loaded later depend on it.
    _device_constructors()

    def tensor(data: Any, *, device: Any = None, **kwargs: Any) -> Tensor:
        # PyTorch's own builds on `meta` without an operator that could be seen.
        return make(data, **kwargs).to(device or "cpu")

    torch.tensor = tensor
    try:
        with Driver():
            yield
    finally:
        torch.tensor = make


def moved(net: torch.nn.Module) -> torch.nn.Module:
    """The module with its weights and buffers on the device."""
    for module in net.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(Narrow(weight.data), requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, Narrow(buffer))
    return net
