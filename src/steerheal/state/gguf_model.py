"""A model's own GGUF file with some of its weights replaced.

Every field and tensor of the file is copied as it is, quantised ones by their bytes; what a history
changes is written as float16, whose rounding is far below that of four bits.

Source: ggml-org/ggml, docs/gguf.md.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from jaxtyping import Float
from torch import Tensor

from steerheal.state.gguf_lora import GgufNames

ARCHITECTURE, OWN = "general.architecture", "GGUF."
"""Fields that the writer makes itself."""


def rewrite_gguf(
    source: Path, out: Path, weights: Mapping[str, Float[Tensor, "O I"]], config: Any
) -> None:
    """Writes the file anew with other weights in some layers.

    Args:
        source: The file that the model was read from.
        out: Where to.
        weights: By the layers' full names, in the order of rows that the model has here.
        config: The text part of its transformers configuration.

    Raises:
        UserError: a layer that llama.cpp has no name for.
        OSError: the disk refuses.
    """
    names, reader = GgufNames(config), GGUFReader(source)
    changed = {names.tensor(layer): (layer, weight) for layer, weight in weights.items()}
    writer = GGUFWriter(out, names.architecture)
    writer.data_alignment = reader.alignment
    try:
        for field in reader.fields.values():
            if field.name != ARCHITECTURE and not field.name.startswith(OWN):
                kind, *inner = field.types
                item = inner[-1] if kind == GGUFValueType.ARRAY and inner else None
                writer.add_key_value(field.name, field.contents(), kind, sub_type=item)
        for tensor in reader.tensors:
            data, kind = tensor.data, tensor.tensor_type
            if tensor.name in changed:
                layer, weight = changed.pop(tensor.name)
                data = names.stored(layer, weight.float()).numpy().astype(np.float16)
                kind = GGMLQuantizationType.F16
            writer.add_tensor(tensor.name, data, raw_dtype=kind)
        assert not changed, f"the file lacks {sorted(changed)[:3]}"
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
