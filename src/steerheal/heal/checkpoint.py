"""A heal's state after an epoch, in one scratch file, so that a killed heal goes on from there.

One safetensors file: the trained factors, the optimiser's moments and the spectral vectors as
tensors, everything else as JSON in its header. It appears whole or not at all. A file that is
damaged, or of another heal, is told of and ignored: the heal then starts from the beginning.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from steerheal.disk import write_bytes
from steerheal.errors import UserError
from steerheal.ranks import leads
from steerheal.records import HealStep, Record


class Place(Record):
    """Where a heal stands after an epoch, besides its tensors."""

    made_of: str
    """Digest of what the heal is made of; another heal's file is not taken for this one's."""
    epochs: int
    """Epochs done."""
    steps: tuple[HealStep, ...]
    held_out: tuple[float, ...]
    used: int
    """Positions read so far that were not padding."""
    read: int
    """Positions read so far."""
    digest: str = ""
    """Of the tensors' bytes."""


class Saved(NamedTuple):
    """A heal's state after an epoch."""

    place: Place
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """The scratch file of one heal."""

    path: Path
    note: Callable[[str], None] = lambda _text: None
    """Hears why a file was ignored or could not be written, and where a heal goes on."""

    def part(self, number: int) -> Self:
        """The file of one of several adapters that a heal trains; the first has the heal's own."""
        own = self.path
        return replace(self, path=own.with_name(f"{own.name}-{number}")) if number else self

    def write(self, place: Place, tensors: dict[str, Tensor]) -> None:
        """Saves the state; a disk that refuses costs only the way back here."""
        if not leads():
            return
        own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        marked = place.model_copy(update={"digest": _digest(own)})
        try:
            write_bytes(self.path, save(own, metadata={"place": marked.model_dump_json()}))
        except UserError as error:
            self.note(f"heal · not saved after epoch {place.epochs}: {error}")

    def read(self, made_of: str) -> Saved | None:
        """The saved state of the heal with this digest; None when there is none to go on from."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                place = Place.model_validate_json((file.metadata() or {}).get("place", ""))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValidationError) as error:
            self.note(f"heal · {self.path} cannot be read ({_first(error)}): starting over")
            return None
        if place.digest != _digest(tensors):
            self.note(f"heal · {self.path} is damaged: starting over")
            return None
        if place.made_of != made_of:
            self.note(f"heal · {self.path} is of another heal: starting over")
            return None
        self.note(f"heal · going on after epoch {place.epochs}")
        return Saved(place, tensors)

    def remove(self) -> None:
        """Takes the file away, once what it leads to is saved."""
        if not leads():
            return
        for path in (self.path, *self.path.parent.glob(f"{self.path.name}-*")):
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _digest(tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def _first(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
