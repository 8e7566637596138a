"""A state as files: what a program that knows no hooks can be given in place of it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Factored(Protocol):
    """An adapter that can be written as PEFT does."""

    @property
    def key(self) -> str: ...
    @property
    def rank(self) -> int: ...
    def save(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class Unhooked:
    """The model with biases on its blocks' outputs, and an adapter beside its layers."""

    biases: Mapping[int, Float[Tensor, " D"]] = field(default_factory=dict)
    """What is added to a block's output, by block; float32 on the CPU."""
    adapter: Factored | None = None

    @cached_property
    def pushed(self) -> str:
        """Digest of the biases; empty without any."""
        if not self.biases:
            return ""
        found = hashlib.sha256()
        for block, bias in sorted(self.biases.items()):
            found.update(f" {block} ".encode() + bias.contiguous().numpy().tobytes())
        return found.hexdigest()[:20]
