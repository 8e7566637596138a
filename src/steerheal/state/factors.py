"""The two factors of a LoRA layer, and how PEFT's files hold them.

PEFT computes y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ with s = alpha/rank, or alpha/√rank for rsLoRA; rank and alpha
may differ by layer. Only what is such a sum on the original weights can be folded.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from peft import LoraConfig, PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from steerheal.config import NO_DORA
from steerheal.errors import UserError

PREFIX, DOWN, UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"

MOVED = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starts that take a part of the base weights away before training."""
VARIANTS = (
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "velora_config",
    "monteclora_config",
    "arrow_config",
    "kasa_config",
)
"""Settings of PEFT under which LoRA is no plain sum on a weight."""


@dataclass(frozen=True)
class Pair:
    """The two factors on one linear layer."""

    down: Float[Tensor, "R I"]
    up: Float[Tensor, "O R"]


class Factors(NamedTuple):
    """Factors by layer, all of one rank and scale."""

    pairs: dict[str, Pair]
    scale: float
    rank: int


def read_factors(folder: Path) -> Factors:
    """The factors in a PEFT folder, brought to one rank and one scale.

    Where layers differ, lower ranks are filled up with zeros and scales move into B, which leaves
    every s·B·A what it is.

    Raises:
        UserError: unreadable, damaged, or of a kind that cannot be folded.
    """
    if not (folder / CONFIG_NAME).is_file():
        raise UserError(
            f"{folder} is no PEFT adapter folder: it has no {CONFIG_NAME}. A model goes after "
            "--model, a run is a folder with run.json."
        )
    try:
        config = cast(LoraConfig, PeftConfig.from_pretrained(str(folder)))
        tensors = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"Cannot read the adapter in {folder}: {first}") from error
    _refuse_unfoldable(config, folder)
    pairs = pairs_of(tensors, folder)
    scales = {name: _scale(config, name, pair.down.shape[0]) for name, pair in pairs.items()}
    rank = max(pair.down.shape[0] for pair in pairs.values())
    if len(set(scales.values())) == 1:
        scale = next(iter(scales.values()))
    else:
        scale = 1.0
        pairs = {
            name: Pair(pair.down, scales[name] * pair.up.float()) for name, pair in pairs.items()
        }
    return Factors({name: _filled(pair, rank) for name, pair in pairs.items()}, scale, rank)


def pairs_of(tensors: dict[str, Tensor], folder: Path) -> dict[str, Pair]:
    """PEFT's tensors as factors by layer name.

    Raises:
        UserError: one of two factors is absent, they do not fit, or there is something else.
    """
    pairs = {}
    rest = set(tensors)
    for key in sorted(tensors):
        if not key.endswith(DOWN):
            continue
        stem = key.removesuffix(DOWN)
        if stem + UP not in tensors:
            raise UserError(f"The adapter in {folder} lacks {stem + UP}.")
        down, up = tensors[key], tensors[stem + UP]
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
            raise UserError(f"The adapter in {folder} has factors on {stem} that do not fit.")
        pairs[stem.removeprefix(PREFIX)] = Pair(down, up)
        rest -= {key, stem + UP}
    if rest or not pairs:
        raise UserError(f"The adapter in {folder} holds what is not LoRA: {sorted(rest)[:3]}.")
    return pairs


def scale_of(alpha: float, rank: int, *, rslora: bool) -> float:
    """s = alpha/rank, or alpha/√rank for rsLoRA."""
    return alpha / (rank**0.5 if rslora else rank)


def _refuse_unfoldable(config: Any, folder: Path) -> None:
    kind = getattr(config, "peft_type", None)
    if kind != "LORA":
        raise UserError(f"{folder} holds a {kind} adapter; only LoRA adapters can be folded.")
    if config.use_dora:
        raise UserError(f"{folder} is a DoRA adapter, which cannot be folded. {NO_DORA}.")
    start = str(config.init_lora_weights).lower()
    if start.startswith(MOVED):
        raise UserError(
            f"{folder} is a {start} adapter, which belongs on weights that {start} has changed. "
            "Convert it to plain LoRA: save it through PEFT with "
            "path_initial_model_for_weight_conversion."
        )
    for setting in VARIANTS:
        if getattr(config, setting, None):
            raise UserError(
                f"{folder} is a LoRA variant ({setting}) that is no plain sum on the weights; "
                "only plain LoRA and rsLoRA can be folded."
            )


def _scale(config: LoraConfig, name: str, rank: int) -> float:
    patterns = config.alpha_pattern or {}
    alpha = patterns.get(get_pattern_key(list(patterns), name), config.lora_alpha)
    return scale_of(alpha, rank, rslora=config.use_rslora)


def _filled(pair: Pair, rank: int) -> Pair:
    """The same product at a higher rank: zero rows under A, zero columns beside B."""
    less = rank - pair.down.shape[0]
    if not less:
        return pair
    pad = torch.nn.functional.pad
    return Pair(pad(pair.down, (0, 0, 0, less)), pad(pair.up, (0, less)))
