"""How large a model is, told from its files, and the refusal of one that memory does not hold."""

import json
import math
from pathlib import Path
from typing import NamedTuple

from steerheal.errors import UserError

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PACKED = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in four bits: itself, its share of a scale in one byte for 64 weights, and of
a float32 for 256 such scales."""
GB = 1e9


class Size(NamedTuple):
    """What a model's configuration says of its size."""

    parameters: int
    layers: int
    hidden: int
    cached: int = 0
    """Bytes of keys and values that a token leaves in a cache."""
    packed: int = 0
    """How many of the parameters are in four bits."""
    elsewhere: int = 0
    """How many of the parameters other processes hold, where several share a model."""
    gathered: int = 0
    """How many of those a forward needs here at once."""
    reordered: int = 0
    """How many of the parameters are kept a second time, in the processor's layout."""

    @property
    def held(self) -> int:
        """Parameters that lie on one device, at most."""
        return self.parameters - self.elsewhere + self.gathered

    @property
    def writable(self) -> bool:
        """Whether a history can be folded into the weights."""
        return not (self.packed or self.elsewhere)


def weights_bytes(parameters: int, dtype: str, packed: int = 0) -> float:
    """Bytes of the weights in a precision, but for so many of them in four bits."""
    return (parameters - packed) * BYTES[dtype] + packed * PACKED


def gigabytes(count: float) -> str:
    """Bytes as GB."""
    return f"{count / GB:.1f} GB" if count < 100 * GB else f"{count / GB:.0f} GB"


def parameters_in(folder: Path) -> int | None:
    """Parameters in a model folder's safetensors, by their headers alone; None: cannot be told."""
    index, one = folder / "model.safetensors.index.json", folder / "model.safetensors"
    try:
        names = {one.name}
        if not one.is_file():
            names = set(json.loads(index.read_bytes())["weight_map"].values())
        return sum(_in_header(folder / name) for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # what is absent or damaged is told of where it is read


def _in_header(file: Path) -> int:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError(f"{file} is cut")
        header = json.loads(stream.read(length))
    return sum(
        math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"
    )


def refuse_too_large(name: str, least: float, dtype: str, free: float, shares: int = 1) -> None:
    """Refuses weights that do not fit, before any of them is read.

    Args:
        name: The model.
        least: Bytes that its weights need at least.
        dtype: Their precision; empty where it is the file's own.
        free: Bytes that there are.
        shares: Among how many devices the weights are shared out.

    Raises:
        UserError: there is less memory than the weights alone need.
    """
    if least / shares <= free:
        return
    held = f"in {dtype}" if dtype else "as its file holds them"
    part = f", shared out among {shares} devices" if shares > 1 else ""
    half = " Half as much does with --model.dtype bfloat16." if BYTES.get(dtype) == 4 else ""
    raise UserError(
        f"{name} has {gigabytes(least)} of weights {held}{part}; {gigabytes(free)} of memory "
        f"are free.{half} Take a smaller model, or make room."
    )
