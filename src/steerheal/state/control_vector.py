"""Control vectors: the GGUF layout that repeng writes and llama.cpp loads.

    general.architecture       "controlvector"
    controlvector.model_hint   the model's type, such as llama
    controlvector.layer_count  how many directions follow
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
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from jaxtyping import Float
from torch import Tensor

from steerheal.errors import UserError

ARCHITECTURE = "controlvector"
PREFIX = "direction."


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
        writer.add_string(f"{ARCHITECTURE}.model_hint", model_hint)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(layers))
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


def read_control_vector(path: Path) -> dict[int, Float[Tensor, " D"]]:
    """Directions by block from a GGUF control vector.

    Raises:
        UserError: unreadable, damaged, or not a control vector.
    """
    try:
        reader = GGUFReader(path)
        field = reader.get_field("general.architecture")
        found = None if field is None else field.contents()
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
    return dict(sorted(numbered.items()))


def _layer(path: Path, name: str) -> int:
    number = name.removeprefix(PREFIX)
    if not name.startswith(PREFIX) or not number.isdecimal() or int(number) == 0:
        raise UserError(f"{path}: tensor {name!r} is not {PREFIX}<block>, with a block from 1 on.")
    return int(number)
