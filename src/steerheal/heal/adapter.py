"""A round's LoRA adapter: attached through PEFT for training, saved and read in PEFT's own format.

y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ with s = alpha / rank; B starts at 0: a fresh adapter changes nothing.
Source: Hu et al. 2021, arXiv:2106.09685.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import torch
from jaxtyping import Float
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from steerheal.config import HealSettings
from steerheal.errors import UserError
from steerheal.models.load import ChatModel, band_layers

PREFIX, DOWN, UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class Pair:
    """The two factors on one linear layer."""

    down: Float[Tensor, "R I"]
    up: Float[Tensor, "O R"]


@dataclass(frozen=True)
class Adapter:
    """A trained adapter: factors by the full name of the layer they add to, and their scale."""

    pairs: dict[str, Pair]
    scale: float
    rank: int

    def delta(self, name: str) -> Float[Tensor, "O I"]:
        """s·B·A in float32: what the adapter adds to the layer's weight at gate 1."""
        pair = self.pairs[name]
        return self.scale * (pair.up.float() @ pair.down.float())

    def save(self, folder: Path, *, base: str) -> None:
        """Writes adapter_config.json and adapter_model.safetensors, as PEFT does.

        Args:
            folder: Where to; made when absent.
            base: Name of the base model, for whoever loads it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=cast(int, self.scale * self.rank),
            target_modules=sorted(self.pairs),
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
            inference_mode=True,
            base_model_name_or_path=base,
        )
        tensors = {}
        for name, pair in self.pairs.items():
            tensors[PREFIX + name + DOWN] = pair.down.contiguous()
            tensors[PREFIX + name + UP] = pair.up.contiguous()
        save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        config.save_pretrained(str(folder))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """An adapter from a PEFT folder.

        Raises:
            UserError: unreadable, damaged, or of a kind that cannot be folded.
        """
        try:
            config = cast(LoraConfig, PeftConfig.from_pretrained(str(folder)))
            tensors = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            first = str(error).splitlines()[0]
            raise UserError(f"Cannot read the adapter in {folder}: {first}") from error
        _refuse_unfoldable(config, folder)
        pairs = _pairs_of(tensors, folder)
        root = config.r**0.5 if config.use_rslora else config.r
        return cls(pairs, config.lora_alpha / root, config.r)


def _refuse_unfoldable(config: Any, folder: Path) -> None:
    kind = getattr(config, "peft_type", None)
    if kind != "LORA":
        raise UserError(f"{folder} holds a {kind} adapter; only LoRA adapters can be folded.")
    if config.use_dora:
        raise UserError(f"{folder} is a DoRA adapter, which is not a sum on the weights.")
    if config.rank_pattern or config.alpha_pattern:
        raise UserError(f"{folder} mixes ranks or alphas by layer, which is not supported.")


def _pairs_of(tensors: dict[str, Tensor], folder: Path) -> dict[str, Pair]:
    pairs = {}
    rest = set(tensors)
    for key in sorted(tensors):
        if not key.endswith(DOWN):
            continue
        stem = key.removesuffix(DOWN)
        if stem + UP not in tensors:
            raise UserError(f"The adapter in {folder} lacks {stem + UP}.")
        pairs[stem.removeprefix(PREFIX)] = Pair(tensors[key], tensors[stem + UP])
        rest -= {key, stem + UP}
    if rest or not pairs:
        raise UserError(f"The adapter in {folder} holds what is not LoRA: {sorted(rest)[:3]}.")
    return pairs


def target_names(chat: ChatModel, settings: HealSettings) -> list[str]:
    """Full names of every linear layer inside the band's decoder blocks."""
    blocks = chat.blocks
    inside = {id(blocks[i]) for i in band_layers(len(blocks), settings.band)}
    roots = [name for name, module in chat.net.named_modules() if id(module) in inside]
    return [
        name
        for name, module in chat.net.named_modules()
        if isinstance(module, nn.Linear) and any(name.startswith(root + ".") for root in roots)
    ]


@contextmanager
def training(chat: ChatModel, settings: HealSettings, *, seed: int) -> Iterator[PeftModel]:
    """The model with a fresh trainable adapter; its modules and flags are put back at the end."""
    names = target_names(chat, settings)
    if not names:
        raise UserError(f"{chat.name} has no linear layers in blocks {settings.band} of its depth.")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=cast(int, settings.alpha),
        target_modules=names,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with untouched(chat, names):
        devices = [chat.device] if chat.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT remarks on tied heads, which stay untouched
            torch.manual_seed(seed)
            model = get_peft_model(chat.net, config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        yield cast(PeftModel, model)


@contextmanager
def untouched(chat: ChatModel, names: Sequence[str]) -> Iterator[None]:
    """Whatever PEFT does inside, the model leaves with its own modules, frozen, in evaluation mode.

    Args:
        chat: The model.
        names: Full names of the layers that PEFT may replace.
    """
    children = _children(chat, names)
    try:
        yield
    finally:
        for parent, name, module in children:
            setattr(parent, name, module)
        for trace in ("peft_config", "_hf_peft_config_loaded"):
            chat.net.__dict__.pop(trace, None)
        chat.net.eval().requires_grad_(False)


def trained(model: PeftModel, settings: HealSettings) -> Adapter:
    """The trained factors, copied to the CPU."""
    state = get_peft_model_state_dict(model)
    tensors = {key: value.detach().float().cpu().clone() for key, value in state.items()}
    return Adapter(
        _pairs_of(tensors, Path("memory")), settings.alpha / settings.rank, settings.rank
    )


def _children(chat: ChatModel, names: Sequence[str]) -> list[tuple[nn.Module, str, nn.Module]]:
    found = []
    for name in names:
        parent, _, child = name.rpartition(".")
        module = chat.net.get_submodule(parent)
        found.append((module, child, module.get_submodule(child)))
    return found
