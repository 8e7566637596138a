"""The two factors of a LoRA layer, and how PEFT's files hold them.

PEFT computes y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ with s = alpha/rank, or alpha/√rank for rsLoRA; rank and alpha
may differ by layer. Only what is such a sum on the original weights can be folded.
"""

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from peft import LoraConfig, PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from steerheal.errors import UserError

PREFIX, DOWN, UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"

MOVED = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starts that take a part of the base weights away before training."""
HONOURED = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config",
    "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha",
    "lora_dropout", "lora_ga_config", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules",
    "task_type", "use_dora", "use_rslora",
})  # fmt: skip
"""Settings of PEFT that the factors hold, that are looked at here, or that only training used; any
other one that is set makes the adapter something else than a plain sum on linear layers."""
TASKS = ("CAUSAL_LM", "None")
"""Tasks whose model has no head beside the language model's."""
NO_DORA = (
    "DoRA scales every row of a weight anew, so that its difference to the weight has full rank: "
    "no small adapter holds it, and a dense copy per round would need as much memory as the "
    "adapted layers. Use lora, rslora or pissa"
)


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
    base: str
    """Name of the model that the folder says it is for."""


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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # settings that this PEFT does not know are looked at
            config = cast(LoraConfig, PeftConfig.from_pretrained(str(folder)))
        said = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        tensors = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"Cannot read the adapter in {folder}: {first}") from error
    _refuse_unfoldable(config, folder)
    _refuse_unknown(config, said, folder)
    pairs = pairs_of(tensors, folder)
    _refuse_untargeted(config, pairs, folder)
    scales = {name: _scale(config, name, pair.down.shape[0]) for name, pair in pairs.items()}
    rank = max(pair.down.shape[0] for pair in pairs.values())
    if len(set(scales.values())) == 1:
        scale = next(iter(scales.values()))
    else:
        scale = 1.0
        pairs = {
            name: Pair(pair.down, scales[name] * pair.up.float()) for name, pair in pairs.items()
        }
    equal = {name: filled(pair, rank) for name, pair in pairs.items()}
    return Factors(equal, scale, rank, str(config.base_model_name_or_path or ""))


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
    if config.bias != "none":
        raise UserError(
            f"{folder} trained biases of the model as well (bias {config.bias!r}), which are not "
            "folded. Only factors on linear layers are."
        )
    if str(getattr(config.task_type, "value", config.task_type)) not in TASKS:
        raise UserError(
            f"{folder} is an adapter for the task {config.task_type}, whose model has a head of "
            "its own; only adapters of language models can be folded."
        )


def _refuse_unknown(config: LoraConfig, said: Mapping[str, Any], folder: Path) -> None:
    """Looks at every setting of the file, those of other versions of PEFT included."""
    usual = {field.name: getattr(LoraConfig(), field.name) for field in fields(LoraConfig)}
    for setting, value in said.items():
        mine = getattr(config, setting, value)
        if setting not in HONOURED and mine and mine != usual.get(setting):
            raise UserError(
                f"{folder} is a LoRA variant ({setting}) that is no plain sum on linear layers; "
                "only plain LoRA and rsLoRA can be folded."
            )


def _refuse_untargeted(config: LoraConfig, names: Iterable[str], folder: Path) -> None:
    """Factors on a layer that the settings leave out are read by nobody else."""
    if config.target_modules == INCLUDE_LINEAR_LAYERS_SHORTHAND:
        return
    left = [name for name in names if not check_target_module_exists(config, name)]
    if left:
        raise UserError(
            f"The settings of {folder} leave out layers that it has factors on: {left[:3]}. PEFT "
            "would not apply them; correct target_modules in its adapter_config.json."
        )


def _scale(config: LoraConfig, name: str, rank: int) -> float:
    patterns = config.alpha_pattern or {}
    alpha = patterns.get(get_pattern_key(list(patterns), name), config.lora_alpha)
    return scale_of(alpha, rank, rslora=config.use_rslora)


def filled(pair: Pair, rank: int) -> Pair:
    """The same product at a higher rank: zero rows under A, zero columns beside B."""
    less = rank - pair.down.shape[0]
    if not less:
        return pair
    pad = torch.nn.functional.pad
    return Pair(pad(pair.down, (0, 0, 0, less)), pad(pair.up, (0, less)))
