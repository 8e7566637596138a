"""Control vectors: the GGUF layout that repeng writes and llama.cpp loads.

    general.architecture       "controlvector"
    controlvector.model_hint   the model's type, such as llama
    controlvector.layer_count  how many directions follow; others write the model's blocks
    direction.<N>              float32 [D], one per block

N is the index of the block, counted from 0: `direction.N` is added to the output of block N, and
so is ours of block ℓ = N. repeng reads direction N from hidden_states[N + 1], which is block N's
output. llama.cpp's loader (common_control_vector_load) keeps direction N at place N − 1 of its
buffer, and its adapter (llama_adapter_cvec::apply) takes the direction of block N from place
N − 1, so that the two shifts cancel. Both leave out block 0: the layout cannot hold it.

Sources: vgel/repeng, repeng/extract.py; ggml-org/llama.cpp, common/common.cpp and
src/llama-adapter.cpp.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from jaxtyping import Float
from torch import Tensor

from steerheal.errors import UserError

ARCHITECTURE = "controlvector"
PREFIX = "direction."
HINT, COUNT = f"{ARCHITECTURE}.model_hint", f"{ARCHITECTURE}.layer_count"
OPERATIONS = ("operation", "operator", "op", "kind", "mode", "type")
"""Names under which a file may say what its directions do to a state."""
ADDED = ("add", "added", "adding", "addition", "additive", "sum")
"""What they may say: llama.cpp and this program add."""
ALIKE = {"llama": ("llama", "mistral", "mixtral")}
"""Types of models by the hint that llama.cpp gives them, where that is another name."""


@dataclass(frozen=True)
class MadeFor:
    """What a control vector's file says of the model that it is for."""

    path: str
    hint: str
    """The model's type; empty where it says none."""
    count: int
    """Its layer count; 0 where it says none."""
    directions: int

    def refuse_other(self, name: str, types: Sequence[str], depth: int) -> None:
        """Holds it against a model.

        Args:
            name: The model's.
            types: What the model's configuration calls its type.
            depth: Its blocks.

        Raises:
            UserError: it is for another type or depth.
        """
        known = {_plain(item) for item in types}
        hints = {_plain(item) for item in ALIKE.get(self.hint.lower(), (self.hint,))}
        if self.hint and not hints & known:
            raise UserError(
                f"{self.path} is for a model of type {self.hint!r}, and {name} is of type "
                f"{types[0]!r}. A direction means something only in the model it was read from."
            )
        if self.count not in (0, self.directions, depth, depth - 1):
            raise UserError(
                f"{self.path} says that it is for {self.count} layers: it has {self.directions} "
                f"directions, and {name} has {depth} blocks. It is of another model, or cut."
            )


def _plain(kind: str) -> str:
    """A model's type without what its writers differ in: qwen3moe and qwen3_moe are one."""
    return kind.lower().replace("_", "").replace("-", "").removesuffix("text")


def write_control_vector(
    path: Path, layers: Mapping[int, Float[Tensor, " D"]], model_hint: str
) -> None:
    """Writes directions by block as a GGUF control vector, whole or not at all.

    Raises:
        UserError: a direction on block 0, or a path that cannot be written.
    """
    if 0 in layers:
        raise UserError(
            "A GGUF control vector cannot steer block 0: llama.cpp starts at block 1. Extract the "
            "vector with a --vector.band that starts later."
        )
    work = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        writer = GGUFWriter(work, ARCHITECTURE)
        writer.add_string(HINT, model_hint)
        writer.add_uint32(COUNT, len(layers))
        for layer, vector in sorted(layers.items()):
            writer.add_tensor(f"{PREFIX}{layer}", vector.float().contiguous().numpy())
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
        work.replace(path)
    except OSError as error:
        raise UserError(f"Cannot write control vector {path}: {error.strerror}.") from error
    finally:
        with suppress(OSError):
            work.unlink(missing_ok=True)


def read_control_vector(path: Path) -> tuple[dict[int, Float[Tensor, " D"]], MadeFor]:
    """Directions by block from a GGUF control vector, and the model that it says it is for.

    Raises:
        UserError: unreadable, damaged, not a control vector, or one that is not simply added.
    """
    try:
        reader = GGUFReader(path)
        field = reader.get_field("general.architecture")
        found = None if field is None else field.contents()
        says = {
            name: item.contents()
            for name, item in reader.fields.items()
            if name.startswith(f"{ARCHITECTURE}.")
        }
        tensors = {item.name: item for item in reader.tensors}
        layers = {name: torch.from_numpy(item.data.copy()) for name, item in tensors.items()}
    except OSError as error:
        raise UserError(f"Cannot read control vector {path}: {error.strerror or error}.") from error
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, RuntimeWarning) as error:
        raise UserError(f"{path} is not a GGUF file, or a damaged one ({error}).") from error
    if found != ARCHITECTURE:
        raise UserError(
            f"{path} is not a control vector: its architecture is {found!r}, expected "
            f"{ARCHITECTURE!r}."
        )
    if not tensors:
        raise UserError(f"{path} holds no directions.")
    for name, item in tensors.items():
        if item.tensor_type != GGMLQuantizationType.F32 or layers[name].ndim != 1:
            raise UserError(f"{path}: {name} is not a row of float32, which llama.cpp asks for.")
    if len({len(vector) for vector in layers.values()}) > 1:
        raise UserError(f"{path}: its directions differ in width.")
    if not all(vector.isfinite().all() for vector in layers.values()):
        raise UserError(f"{path}: a direction holds a number that is not finite.")
    numbered = {_layer(path, name): vector for name, vector in layers.items()}
    return dict(sorted(numbered.items())), _made_for(path, says, len(layers))


def _made_for(path: Path, says: dict[str, object], directions: int) -> MadeFor:
    """What the file's own settings say.

    Raises:
        UserError: another operation than adding, or a number that nobody here knows.
    """
    hint, count = says.pop(HINT, ""), says.pop(COUNT, 0)
    if not isinstance(hint, str) or not isinstance(count, int):
        raise UserError(f"{path}: {HINT} is not a text, or {COUNT} not a number.")
    for name, value in says.items():
        operation = name.rpartition(".")[2].lower() in OPERATIONS
        if operation and str(value).lower() not in ADDED:
            raise UserError(
                f"{path} says {name} {value!r}: its directions are not simply added, which is all "
                "that a GGUF control vector can be read as here."
            )
        if not operation and not isinstance(value, str):
            raise UserError(
                f"{path} says {name} {value!r}, which is not known here and may change what its "
                "directions do. Write the file without it, with the directions as they are added."
            )
    return MadeFor(str(path), hint, count, directions)


def _layer(path: Path, name: str) -> int:
    number = name.removeprefix(PREFIX)
    if not name.startswith(PREFIX) or not number.isdecimal() or int(number) == 0:
        raise UserError(f"{path}: tensor {name!r} is not {PREFIX}<block>, with a block from 1 on.")
    return int(number)
