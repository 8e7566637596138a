"""A round's LoRA adapter in training: attached through PEFT, and taken off as a value.

y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ. Kinds differ in how they train, and all end as such a sum on W:
`lora`, s = alpha/rank and B starts at 0, so that a fresh adapter changes nothing;
`rslora`, the same with s = alpha/√rank;
`pissa`, s·B₀A₀ starts as W's leading singular part and is taken away again beside the weights, so
that what trains is s·(BA − B₀A₀), one adapter of twice the rank on W itself.
DoRA is no kind of them: its difference to W has full rank, and no small adapter holds it.

Sources: Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023, arXiv:2312.03732;
Meng et al. 2024, arXiv:2404.02948; Liu et al. 2024, arXiv:2402.09353.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import Tensor, nn

from steerheal.config import HealSettings
from steerheal.errors import UserError, unknown
from steerheal.models.hooks import Hook, hooked
from steerheal.models.model import ChatModel, band_layers
from steerheal.state.adapter import Adapter
from steerheal.state.factors import Pair, pairs_of, scale_of

START = "steerheal_start"
"""Where a model in training keeps the factors it started from, if they are not nothing."""


def target_names(chat: ChatModel, settings: HealSettings) -> list[str]:
    """Full names of the linear layers in the band's decoder blocks that `targets` asks for.

    Raises:
        UserError: the band has no linear layers, a target names none of them, or PEFT adapts none.
    """
    labels = {
        f"{root}.{name}": labels_of(name)
        for root in band_roots(chat, settings)
        for name, module in chat.net.get_submodule(root).named_modules()
        if isinstance(module, nn.Linear)
    }
    if not labels:
        raise UserError(f"{chat.name} has no linear layers in blocks {settings.band} of its depth.")
    for target in settings.targets:
        if not any(target in known for known in labels.values()):
            fix = f"These are the linear layers of {chat.name} in heal.band."
            raise unknown("heal.targets", target, set().union(*labels.values()), fix=fix)
    found = [name for name, known in labels.items() if known & set(settings.targets)]
    names = _adaptable(chat, found)
    if not names:
        raise UserError(
            f"PEFT cannot put an adapter on {', '.join(settings.targets)} of {chat.name}: it takes "
            "these names for the fused experts. Give other heal.targets."
        )
    return names


def _adaptable(chat: ChatModel, names: Sequence[str]) -> list[str]:
    """The layers that PEFT adapts under these names, here and for whoever loads the adapter.

    In a mixture of experts it takes some of them, such as gate_proj in a block without experts, for
    the fused experts of other blocks.
    """

    def kept(some: Sequence[str]) -> bool:
        config = LoraConfig(target_modules=list(some))
        try:
            convert_peft_config_for_transformers(config, chat.net, None)
        except ValueError:
            return False
        return set(config.target_modules or ()) == set(some)

    return list(names) if kept(names) else [name for name in names if kept([name])]


def band_roots(chat: ChatModel, settings: HealSettings) -> list[str]:
    """Full names of the band's decoder blocks."""
    blocks = chat.blocks
    inside = {id(blocks[i]) for i in band_layers(len(blocks), settings.band)}
    return [name for name, module in chat.net.named_modules() if id(module) in inside]


def labels_of(name: str) -> set[str]:
    """What `targets` may call a layer, by its path within its block."""
    return {"all", _group(name), name.rpartition(".")[2]}


def _group(name: str) -> str:
    """Which part of its block a layer belongs to, by the path to it."""
    path = name.lower().split(".")[:-1]
    return "attention" if any("attn" in part or "attention" in part for part in path) else "mlp"


@contextmanager
def training(chat: ChatModel, settings: HealSettings, *, seed: int) -> Iterator[PeftModel]:
    """The model with a fresh trainable adapter; its weights, modules and flags are put back.

    Raises:
        UserError: no layer is targeted, or one is quantised, sharded or smaller than PiSSA's rank.
    """
    names = target_names(chat, settings)
    if settings.adapter == "pissa":
        _refuse_without_start(chat, names, settings.rank)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=cast(int, settings.alpha),
        target_modules=names,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        use_rslora=settings.adapter == "rslora",
        init_lora_weights="pissa" if settings.adapter == "pissa" else True,
    )
    with untouched(chat, names):
        layers = {name: cast(nn.Linear, chat.net.get_submodule(name)) for name in names}
        weights = {name: layer.weight.data for name, layer in layers.items()}
        devices = [chat.device] if chat.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT remarks on tied heads, which stay untouched
            torch.manual_seed(seed)
            model = cast(PeftModel, get_peft_model(chat.net, config))
        wrapped = {name for name, part in chat.net.named_modules() if isinstance(part, LoraLayer)}
        assert wrapped == set(names), f"PEFT chose other layers: {sorted(wrapped ^ set(names))[:3]}"
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        start = _factors(model) if settings.adapter == "pissa" else {}
        vars(model)[START] = start
        with _less(chat, start, weights, scale_of(settings.alpha, settings.rank, rslora=False)):
            yield model


@contextmanager
def _less(
    chat: ChatModel, start: Mapping[str, Pair], weights: Mapping[str, Tensor], scale: float
) -> Iterator[None]:
    """PiSSA's start taken away beside the weights, which stay whole: W + s·(BA − B₀A₀).

    PEFT takes it out of the weights, whose rounding in half precision is as large as what a heal
    learns and would not be there after folding. The sum is made in float32 and rounded once.
    """

    def less(pair: Pair) -> Hook:
        down, up = pair.down.to(chat.device), pair.up.to(chat.device)
        return lambda _, inputs, output: (
            output.float() - scale * (inputs[0].float() @ down.T @ up.T)
        )

    hooks: dict[nn.Module, Hook] = {}
    for name, pair in start.items():
        wrapped = cast(LoraLayer, chat.net.get_submodule(name))
        layer = cast(nn.Linear, wrapped.get_base_layer())
        layer.weight.data = weights[name]
        hooks[layer] = less(pair)
        hooks[cast(nn.Module, wrapped)] = lambda _, inputs, output: output.to(inputs[0].dtype)
    with hooked(hooks):
        yield


@contextmanager
def untouched(chat: ChatModel, names: Sequence[str]) -> Iterator[None]:
    """Whatever PEFT does inside, the model leaves as it came: modules, weights, frozen, evaluating.

    Args:
        chat: The model.
        names: Full names of the layers that PEFT may replace.
    """
    children = _children(chat, names)
    # PEFT gives a layer another tensor for its weight and never writes into the one it had, so
    # that holding on to that one is enough, and costs no copy.
    weights = [(module.weight, module.weight.data) for _, _, module in children]
    try:
        yield
    finally:
        for parent, name, module in children:
            setattr(parent, name, module)
        for weight, data in weights:
            weight.data = data
        for trace in ("peft_config", "_hf_peft_config_loaded"):
            chat.net.__dict__.pop(trace, None)
        chat.net.eval().requires_grad_(False)


def trained(model: PeftModel, settings: HealSettings) -> Adapter:
    """The trained difference to the original weights, as factors on the CPU.

    With start factors A₀, B₀ it is s·(BA − B₀A₀) = s·[B, −B₀]·[A; A₀], of twice the rank.
    """
    pairs, start = _factors(model), vars(model)[START]
    for name, first in start.items():
        last = pairs[name]
        pairs[name] = Pair(
            torch.cat([last.down, first.down]), torch.cat([last.up, -first.up], dim=1)
        )
    scale = scale_of(settings.alpha, settings.rank, rslora=settings.adapter == "rslora")
    return Adapter(pairs, scale, settings.rank * (2 if start else 1))


def _factors(model: PeftModel) -> dict[str, Pair]:
    state = get_peft_model_state_dict(model)
    tensors = {key: value.detach().float().cpu().clone() for key, value in state.items()}
    return pairs_of(tensors, Path("memory"))


def _refuse_without_start(chat: ChatModel, names: Sequence[str], rank: int) -> None:
    if not chat.writable:
        how = "quantised" if chat.quantised else "sharded"
        raise UserError(
            f"PiSSA starts from singular values of the weights, which {chat.name} holds {how}. "
            "Use heal.adapter lora or rslora."
        )
    for name in names:
        layer = cast(nn.Linear, chat.net.get_submodule(name))
        least = min(layer.in_features, layer.out_features)
        if rank > least:
            raise UserError(
                f"heal.rank {rank} is more than PiSSA finds in {name}, whose weight has {least} "
                f"singular values. Give at most {least}, or use heal.adapter lora."
            )


def _children(chat: ChatModel, names: Sequence[str]) -> list[tuple[nn.Module, str, nn.Linear]]:
    found = []
    for name in names:
        parent, _, child = name.rpartition(".")
        module = chat.net.get_submodule(parent)
        found.append((module, child, cast(nn.Linear, module.get_submodule(child))))
    return found
