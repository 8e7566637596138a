"""The steering vector: one direction per steered block, and what it does to the states there.

A value with arithmetic, which is saved, read, exported, and applied to a model at a dose.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self, cast

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from steerheal.errors import UserError
from steerheal.models.hooks import STEERING, Dosed, Kind
from steerheal.models.model import ChatModel
from steerheal.state.control_vector import MadeFor, read_control_vector, write_control_vector

FORMAT = "steerheal-vector-1"


@dataclass(frozen=True)
class SteeringVector:
    """One direction per steered block; a value with arithmetic among vectors of one kind."""

    layers: dict[int, Float[Tensor, " D"]]
    """Direction in float32 on the CPU, by block index."""
    kind: Kind = "add"
    """What it does to a state: added, ablated, or added only where the state points along it."""
    made_for: MadeFor | None = None
    """Which model it is for, where a file from elsewhere says so."""

    @cached_property
    def key(self) -> str:
        """Digest of the directions, their blocks, and what the vector does."""
        found = hashlib.sha256(self.kind.encode())
        for layer, vector in sorted(self.layers.items()):
            found.update(f" {layer} ".encode() + vector.float().cpu().numpy().tobytes())
        return found.hexdigest()[:20]

    def __add__(self, other: Self) -> Self:
        self._same_layers(other)
        if self.kind != other.kind:
            raise UserError(
                f"Vectors of different kinds cannot be combined: {self.kind} and {other.kind}. "
                "Extract both with methods of one kind."
            )
        return replace(self, layers={i: v + other.layers[i] for i, v in self.layers.items()})

    def __sub__(self, other: Self) -> Self:
        return self + other * -1.0

    def __mul__(self, factor: float) -> Self:
        return replace(self, layers={i: v * factor for i, v in self.layers.items()})

    __rmul__ = __mul__

    def __neg__(self) -> Self:
        return self * -1.0

    def _same_layers(self, other: Self) -> None:
        if self.layers.keys() != other.layers.keys():
            raise UserError(
                f"Vectors on different blocks cannot be combined: {sorted(self.layers)} and "
                f"{sorted(other.layers)}."
            )

    def norms(self) -> dict[int, float]:
        """Euclidean norm per block."""
        return {i: v.norm().item() for i, v in self.layers.items()}

    def cosine(self, other: Self) -> float:
        """Cosine with another vector of any kind, mean over blocks; NaN where one is zero."""
        self._same_layers(other)
        pairs = [(v, other.layers[i]) for i, v in self.layers.items()]
        cosines = [(a @ b / (a.norm() * b.norm())).item() for a, b in pairs]
        return sum(cosines) / len(cosines)

    @contextmanager
    def applied(self, chat: ChatModel, dose: float | Tensor = 1.0) -> Iterator[Dosed]:
        """The model steered by the vector inside the context; a tensor doses each row on its own.

        Raises:
            UserError: the vector does not fit the model.
        """
        width, depth = chat.text_config.hidden_size, len(chat.blocks)
        for layer, vector in self.layers.items():
            if layer >= depth or vector.shape != (width,):
                raise UserError(
                    f"The vector does not fit {chat.name}: block {layer} of {depth}, width "
                    f"{vector.shape[0]} for a model of width {width}."
                )
        if self.made_for is not None:
            types = [chat.net.config.model_type, chat.text_config.model_type]
            self.made_for.refuse_other(chat.name, types, depth)
        with STEERING[self.kind](chat, self.layers, dose) as dosed:
            yield dosed

    def save(self, path: Path) -> None:
        """Writes the vector as safetensors."""
        tensors = {f"block.{i}": v.contiguous() for i, v in self.layers.items()}
        # One entry: several are written in an order that changes from run to run.
        save_file(tensors, path, metadata={"format": f"{FORMAT} {self.kind}"})

    @classmethod
    def load(cls, path: Path) -> Self:
        """A vector from safetensors; a file without a kind holds a vector that is added.

        Raises:
            UserError: unreadable, damaged, or not a steering vector.
        """
        try:
            with safe_open(path, framework="pt") as file:
                said = (file.metadata() or {}).get("format", "")
                found, _, kind = said.partition(" ")
                kind = kind or "add"
                if found != FORMAT or kind not in STEERING:
                    raise UserError(
                        f"{path} is not a steering vector (format {found!r}, kind {kind!r})."
                    )
                names = file.keys()
                layers = {int(name.split(".")[1]): file.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            raise UserError(f"Cannot read vector {path}: {error}.") from error
        return cls(dict(sorted(layers.items())), cast(Kind, kind))

    def export_gguf(self, path: Path, model_hint: str) -> None:
        """Writes the vector for llama.cpp and repeng, block ℓ as their `direction.ℓ`.

        Args:
            path: Where to; replaced whole.
            model_hint: The model's type, `chat.net.config.model_type`; readers may show it.

        Raises:
            UserError: a vector that is not simply added, one on block 0, or an unwritable path.
        """
        if self.kind != "add":
            raise UserError(
                f"A vector of kind {self.kind} cannot be exported: llama.cpp adds control vectors "
                "and does nothing else with them."
            )
        write_control_vector(path, self.layers, model_hint)

    @classmethod
    def import_gguf(cls, path: Path) -> Self:
        """A vector from a GGUF control vector of llama.cpp or repeng, to be added.

        Raises:
            UserError: unreadable, damaged, not a control vector, or one that is not simply added.
                That it is for another model is said when it is applied.
        """
        layers, made_for = read_control_vector(path)
        return cls(layers, made_for=made_for)
