"""Base weights in four bits, by bitsandbytes: how they are loaded, and what they do not allow.

The linear layers are packed, two weights to a byte with a scale for every 64 of them; embedding,
head and norms keep the model's precision. What such a layer calls its weight is a column of bytes
that it alone can read: the matrix is what it does to its input, and a history runs beside it.

Source: Dettmers et al. 2023, arXiv:2305.14314 (nf4, double quantisation).
"""

import math
from typing import Any

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig

from steerheal.errors import UserError
from steerheal.extras import refuse_absent
from steerheal.models.model import ChatModel

EXTRA = "quantize"


def refuse_unable(device: torch.device) -> None:
    """Looks whether this machine can hold weights in four bits, before anything is read.

    Raises:
        UserError: no CUDA device, or no bitsandbytes.
    """
    if device.type != "cuda":
        raise UserError(
            f"--model.quantize nf4 needs a CUDA device, and the model would run on {device}. Take "
            "--model.device cuda where there is one, or --model.quantize none."
        )
    refuse_absent(EXTRA, "--model.quantize nf4")


def options(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What transformers is told to quantise while it loads, straight onto the device."""
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True,
        ),
        "device_map": {"": str(device)},
    }


def options_of(chat: ChatModel) -> dict[str, Any]:
    """The same for a process of its own, as JSON; nothing where the weights are whole."""
    if not chat.quantised:
        return {}
    config: Any = chat.net.config
    return {
        "quantization_config": config.quantization_config.to_dict(),
        "device_map": {"": str(chat.device)},
    }


def refuse_merging(chat: ChatModel, what: str) -> None:
    """Nothing is written into packed weights: rounded to four bits anew, most of it would be lost.

    Nor into weights of which this process has a part only.

    Args:
        chat: The model.
        what: What would be written, as a sentence begins.

    Raises:
        UserError: the weights are quantised or sharded.
    """
    if chat.sharded:
        raise UserError(
            f"{what} cannot be written into weights that several processes share. Take one process."
        )
    if chat.quantised:
        raise UserError(
            f"{what} cannot be written into quantised weights. Use --format peft or gguf-lora, and "
            "merge that adapter into the model as it is before quantising."
        )


def parameters_of(weight: Tensor) -> int:
    """How many numbers a weight stands for; a packed one holds two in a byte."""
    packed: Any = getattr(weight, "quant_state", None)
    return weight.numel() if packed is None else math.prod(packed.shape)
