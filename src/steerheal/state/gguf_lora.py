"""LoRA adapters as GGUF, in the layout that llama.cpp's convert_lora_to_gguf writes.

    general.architecture   the base's, such as "llama"
    general.type           "adapter"
    adapter.type           "lora"
    adapter.lora.alpha     float32; llama.cpp adds alpha/rank · B·A
    <tensor>.lora_a        float32 [R, I], A, by the name that llama.cpp gives the base's weight
    <tensor>.lora_b        float32 [O, R], B

llama.cpp turns queries and keys of a llama in another order of coordinates than transformers does:
the two halves of a head there are its even and its odd rows here. Where a base's weights are stored
in that order, so are the rows of B.

Source: ggml-org/llama.cpp, convert_lora_to_gguf.py, conversion of llama, and src/llama-adapter.cpp.
"""

from pathlib import Path
from typing import Any

import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFReader, GGUFWriter, get_tensor_name_map
from jaxtyping import Float
from torch import Tensor

from steerheal.errors import UserError
from steerheal.state.adapter import Adapter
from steerheal.state.factors import Pair

TYPE, KIND, ALPHA = "general.type", "adapter.type", "adapter.lora.alpha"
DOWN, UP = ".lora_a", ".lora_b"
ARCHITECTURES = {
    "llama": MODEL_ARCH.LLAMA,
    "mistral": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
    "gemma2": MODEL_ARCH.GEMMA2,
    "gemma3_text": MODEL_ARCH.GEMMA3,
}
"""Models' types with their name in llama.cpp."""
HEADS = {".self_attn.q_proj": "num_attention_heads", ".self_attn.k_proj": "num_key_value_heads"}
"""Layers whose rows a llama stores in another order, and how many heads they have."""


class GgufNames:
    """How llama.cpp names and orders a model's layers."""

    def __init__(self, config: Any) -> None:
        """Args: config: the text part of a transformers configuration.

        Raises:
            UserError: a type of model whose layout is not known here.
        """
        if config.model_type not in ARCHITECTURES:
            raise UserError(
                f"A GGUF adapter for models of type {config.model_type} is not known here, only "
                f"for {', '.join(ARCHITECTURES)}. Use --format peft."
            )
        self._config = config
        self._arch = ARCHITECTURES[config.model_type]
        self._map = get_tensor_name_map(self._arch, config.num_hidden_layers)

    @property
    def architecture(self) -> str:
        """What llama.cpp calls the model's type."""
        return MODEL_ARCH_NAMES[self._arch]

    def tensor(self, layer: str) -> str:
        """llama.cpp's name of a layer's weight.

        Raises:
            UserError: it has none.
        """
        found = self._map.get_name(f"{layer}.weight", try_suffixes=(".weight",))
        if found is None:
            raise UserError(f"llama.cpp has no tensor for {layer}. Use --format peft.")
        return found

    def stored(self, layer: str, rows: Float[Tensor, "O R"]) -> Float[Tensor, "O R"]:
        """The rows in the order of the file."""
        if (heads := self._heads(layer)) is None:
            return rows
        return rows.reshape(heads, 2, -1, rows.shape[1]).transpose(1, 2).reshape(rows.shape)

    def ours(self, layer: str, rows: Float[Tensor, "O R"]) -> Float[Tensor, "O R"]:
        """The file's rows in the order of the model here."""
        if (heads := self._heads(layer)) is None:
            return rows
        return rows.reshape(heads, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)

    def _heads(self, layer: str) -> int | None:
        """In how many heads a layer's rows are reordered; None where they are not."""
        found = [heads for ending, heads in HEADS.items() if layer.endswith(ending)]
        if self._arch != MODEL_ARCH.LLAMA or not found:
            return None
        return getattr(self._config, found[0])


def write_gguf_lora(path: Path, adapter: Adapter, config: Any) -> None:
    """Writes an adapter for llama.cpp.

    Args:
        path: Where to.
        adapter: What is written, in float32.
        config: The text part of its model's transformers configuration.

    Raises:
        UserError: a model or a layer that the layout has no name for.
        OSError: the disk refuses.
    """
    names = GgufNames(config)
    tensors = {names.tensor(layer): (layer, pair) for layer, pair in adapter.pairs.items()}
    writer = GGUFWriter(path, names.architecture)
    try:
        writer.add_string(TYPE, "adapter")
        writer.add_string(KIND, "lora")
        writer.add_float32(ALPHA, adapter.scale * adapter.rank)
        for tensor, (layer, pair) in sorted(tensors.items()):
            up = names.stored(layer, pair.up.float())
            writer.add_tensor(tensor + DOWN, pair.down.float().contiguous().numpy())
            writer.add_tensor(tensor + UP, up.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def read_gguf_lora(path: Path, layers: list[str], config: Any) -> Adapter:
    """An adapter from such a file, its rows in the model's order.

    Args:
        path: The file.
        layers: Full names of the layers that it should hold.
        config: As for `write_gguf_lora`.

    Raises:
        UserError: no such file, or other layers in it.
    """
    names = GgufNames(config)
    try:
        reader = GGUFReader(path)
        tensors = {item.name: torch.from_numpy(item.data.copy()) for item in reader.tensors}
        fields = {name: reader.fields[name].contents() for name in (TYPE, KIND, ALPHA)}
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"{path} is no GGUF adapter ({error}).") from error
    pairs = {}
    for layer in layers:
        tensor = names.tensor(layer)
        if tensor + DOWN not in tensors or tensor + UP not in tensors:
            raise UserError(f"{path} lacks {tensor}.")
        down, up = tensors.pop(tensor + DOWN), tensors.pop(tensor + UP)
        pairs[layer] = Pair(down, names.ours(layer, up))
    if tensors or (fields[TYPE], fields[KIND]) != ("adapter", "lora"):
        raise UserError(f"{path} is no LoRA adapter of these layers alone: {sorted(tensors)[:3]}.")
    rank = next(iter(pairs.values())).down.shape[0]
    return Adapter(pairs, float(fields[ALPHA]) / rank, rank)
