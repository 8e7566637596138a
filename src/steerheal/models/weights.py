"""Weights from a folder, the hub or a GGUF file, all of them and nothing filled in.

What transformers reports of a load and would let pass is refused here, with the tensors' names.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from steerheal.errors import UserError
from steerheal.models import precision

SHOWN = 3
"""Tensor names in a message."""


def read(
    source: str | Path, *, name: str, dtype: torch.dtype | None, **options: Any
) -> PreTrainedModel:
    """The causal language model at a place, every one of its weights read from there.

    Args:
        source: Hub id or folder.
        name: What the user would call it.
        dtype: Precision of the weights; by their number when none is given.
        options: As transformers takes them.

    Raises:
        UserError: weights are missing, have another shape, or belong to no part of the model.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source,
        dtype=dtype or precision.by_size(_parameters(source, options)),
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **options,
    )
    net, report = cast(tuple[PreTrainedModel, dict[str, Any]], loaded)
    shapes = [
        f"{key} is {_size(found)} in the file and {_size(wanted)} in the model"
        for key, found, wanted in sorted(report["mismatched_keys"])
    ]
    _refuse(name, shapes, "weights of another shape than its configuration says")
    _refuse(name, report["missing_keys"], "weights that the file lacks", "would be random")
    unexpected = report["unexpected_keys"]
    if unexpected:
        where = {key: options[key] for key in ("revision", "gguf_file") if key in options}
        extra = unexpected if _text_only(source, where) else _of_its_parts(net, unexpected)
        _refuse(name, extra, "weights that its configuration has no place for", "would be left out")
    return net


def _parameters(source: str | Path, options: dict[str, Any]) -> int:
    """How many there are, by the configuration at a place."""
    known = {key: value for key, value in options.items() if key != "use_safetensors"}
    config = AutoConfig.from_pretrained(source, **known)
    code = options.get("trust_remote_code", False)
    with torch.device("meta"):
        net = AutoModelForCausalLM.from_config(config, trust_remote_code=code)
    return sum(weight.numel() for weight in net.parameters())


def _refuse(name: str, keys: Iterable[str], what: str, fate: str = "") -> None:
    listed = sorted(keys)
    if listed:
        more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
        raise UserError(
            f"{name} has {len(listed)} {what}{f' and that {fate}' if fate else ''}: "
            f"{', '.join(listed[:SHOWN])}{more}. Its configuration and its weights do not belong "
            "together: get both from the same place again."
        )


def _size(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape))


def _text_only(source: str | Path, where: dict[str, Any]) -> bool:
    """Whether the configuration at a place describes nothing but text."""
    if "gguf_file" in where:
        return True
    stated, _ = PreTrainedConfig.get_config_dict(source, **where)
    return not any(
        isinstance(value, dict) and key.endswith("_config")
        for key, value in stated.items()
        if key not in {"text_config", "quantization_config"}
    )


def _of_its_parts(net: PreTrainedModel, keys: Iterable[str]) -> list[str]:
    """Those of the keys that lie in a part which the model has: a tower it lacks may stay out."""
    parts = {_part(key) for key in net.state_dict()}
    return [key for key in keys if _part(key) in parts]


def _part(key: str) -> str:
    return ".".join(key.split(".")[:2])


def vocabulary(net: PreTrainedModel) -> int:
    """How many tokens have a row both in the embedding and in the head."""
    ends = (net.get_input_embeddings(), net.get_output_embeddings())
    return min(cast(Tensor, end.weight).shape[0] for end in ends if end is not None)


@torch.no_grad()
def refuse_not_finite(net: PreTrainedModel, name: str) -> None:
    """Every weight must be a number; a bias per vocabulary entry, or a mask, may hold −inf.

    Raises:
        UserError: NaN or infinity, with the tensors' names.
    """
    rows = vocabulary(net)
    bad = []
    masks = {key for key, _ in net.named_buffers()}
    for key, tensor in net.state_dict().items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        low, high = (float(value) for value in tensor.aminmax())  # NaN comes through both
        masking = key in masks or (tensor.ndim == 1 and len(tensor) >= rows)
        if low != low or high == torch.inf or (low == -torch.inf and not masking):
            bad.append(f"{key} ({_not_numbers(tensor)})")
    if bad:
        more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        kind = str(net.dtype).removeprefix("torch.")
        advice = "float32 or bfloat16" if net.dtype == torch.float16 else "an intact copy"
        raise UserError(
            f"{name} has weights that are no numbers, read as {kind}: {', '.join(bad[:SHOWN])}"
            f"{more}. Nothing it says could be read. Use {advice}."
        )


def _not_numbers(tensor: Tensor) -> str:
    nan, inf = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    return ", ".join(f"{count} {what}" for count, what in ((nan, "NaN"), (inf, "inf")) if count)
