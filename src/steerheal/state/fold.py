"""The history: finished adapters on the model, each at its own gate, with an exact undo.

W = W₀ + Σᵢ gateᵢ·sᵢ·BᵢAᵢ, summed in float32 and rounded once to the model's precision. The weights
that change are copied first and copied back at the end, so that leaving is bit-exact, and gates
that are all 0 touch nothing.

In half precision that rounding is no noise: W₀ lies on the grid, and every change below half a step
of it is lost: a quarter to a third of a usual adapter, nine tenths of it at gate 0.1. There the
history runs beside the weights instead, as it does while it trains.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from steerheal.errors import UserError
from steerheal.models.hooks import Dosed, Hook, hooked
from steerheal.models.model import ChatModel
from steerheal.models.quantise import refuse_merging
from steerheal.models.score import in_chunks
from steerheal.state.adapter import Adapter
from steerheal.state.factors import Pair

REPEATS, NOISE = 4, 2.0
"""How often a forward is run again to see by how much it differs from itself, and how many times
that difference two runs may be apart: kernels that add in no fixed order differ from run to run."""
ROUNDING = 1e-6
"""Share of the factors' sizes below which their product is rounding: see `Adapter.share`."""


@dataclass(frozen=True)
class Gated:
    """An adapter and the scalar it is folded in at; 0 is absent, 1 is whole."""

    adapter: Adapter
    gate: float = 1.0


class Alive(NamedTuple):
    """What a trained adapter does to the logits at one text."""

    change: float
    """Largest absolute logit change at gate 1, over all positions; not finite where it breaks."""
    scale: float
    """Largest absolute logit at gate 0."""
    layers: int
    """Layers whose weight it changes, of `of`."""
    of: int


@contextmanager
def folded(chat: ChatModel, history: Sequence[Gated]) -> Iterator[None]:
    """The model with the history: in its weights if they are writable and float32, else beside.

    Raises:
        UserError: an adapter does not fit the model.
    """
    live = [item for item in history if item.gate != 0]
    whole = chat.net.dtype == torch.float32 and chat.writable
    with merged(chat, live) if whole else attached(chat, live):
        yield


@contextmanager
def merged(chat: ChatModel, history: Sequence[Gated]) -> Iterator[None]:
    """The model with the history in its weights, rounded to their precision.

    Raises:
        UserError: an adapter does not fit the model, or its weights are not writable.
    """
    refuse_merging(chat, "A history")
    live = [item for item in history if item.gate != 0]
    names = sorted({name for item in live for name in item.adapter.pairs})
    layers = {name: _linear(chat, name, live) for name in names}
    originals: dict[str, Tensor] = {}
    try:
        with torch.no_grad():
            for name, layer in layers.items():
                originals[name] = layer.weight.detach().clone()
                layer.weight.copy_(layer.weight.float() + _delta(live, name, layer.weight))
        yield
    finally:
        with torch.no_grad():
            for name, weight in originals.items():
                layers[name].weight.copy_(weight)


def refuse_unfit(chat: ChatModel, history: Sequence[Gated]) -> None:
    """Looks whether every adapter's layers are the model's, before anything is read.

    Raises:
        UserError: an adapter does not fit the model.
    """
    for name in sorted({name for item in history for name in item.adapter.pairs}):
        _linear(chat, name, history)


def assert_alive(chat: ChatModel, adapter: Adapter, ids: Sequence[int]) -> Alive:
    """Checks that an adapter changes the logits at gate 1, and that gate 0 gives the model back.

    Args:
        chat: The student that the adapter was trained on.
        adapter: What training returned.
        ids: A text that it was trained on, token ids.

    Raises:
        UserError: it is so small that no logit moves.
        RuntimeError: no step reached it, or it does not go away: faults of the program that no
            later stage would notice. What runs of the same forward differ by is no such fault.
    """
    living = [name for name in adapter.pairs if not adapter.share(name) <= ROUNDING]
    if not living:
        raise RuntimeError(
            f"The trained adapter does nothing: its difference is 0 on all {len(adapter.pairs)} "
            "layers, as if no step of the optimiser had reached it."
        )
    before = _logits(chat, ids)
    with folded(chat, [Gated(adapter)]):
        inside = _logits(chat, ids)
    with folded(chat, [Gated(adapter, 0.0)]):
        after = _logits(chat, ids)
    noise = 0.0 if _gap(after, before) == 0 else _noise(chat, ids, before)
    if _gap(inside, before) <= noise:
        raise UserError(
            f"The trained adapter does nothing: it differs from 0 on {len(living)} layers, but in "
            f"{chat.net.dtype} the logits at gate 1 are those at gate 0. Raise heal.lr or "
            "heal.epochs."
        )
    if (gap := _gap(after, before)) > noise:
        raise RuntimeError(
            f"Gate 0 does not restore the model: its logits moved by {gap:.3g}, and runs of the "
            f"same forward are within {noise:.3g}."
        )
    change, scale = (inside - before).abs().max().item(), before.abs().max().item()
    return Alive(change, scale, len(living), len(adapter.pairs))


def _gap(one: Tensor, other: Tensor) -> float:
    """Largest difference; infinite where only one is a number.

    What is not a number in both is equal, so that a broken student is no fault.
    """
    same = (one == other) | (one.isnan() & other.isnan())
    return (one - other).abs().masked_fill(same, 0).nan_to_num(torch.inf, torch.inf).max().item()


def _noise(chat: ChatModel, ids: Sequence[int], before: Tensor) -> float:
    """By how much two runs of one forward may differ; 0 where they are the same bit for bit."""
    return NOISE * max(_gap(_logits(chat, ids), before) for _ in range(REPEATS))


@torch.no_grad()
def _logits(chat: ChatModel, ids: Sequence[int]) -> Float[Tensor, "T V"]:
    """On the CPU, where three of them are held side by side."""
    hidden = chat.hidden(torch.tensor([list(ids)], device=chat.device))[0]
    return torch.cat(in_chunks(chat, len(ids), lambda here: chat.logits(hidden[here]).cpu()))


@contextmanager
def attached(
    chat: ChatModel, history: Sequence[Gated], rows: float | Float[Tensor, "B ..."] = 1.0
) -> Iterator[Dosed]:
    """The history as a branch beside each layer: y + Σᵢ gateᵢ·sᵢ·(x·Aᵢᵀ)·Bᵢᵀ, weights untouched.

    Args:
        chat: The model.
        history: Adapters with their gates.
        rows: A further gate on everything, one per row of every forward, or one per row and
            adapter, so that one batch holds many histories; the handle sets it anew.
    """
    state = Dosed(rows)
    names = sorted({name for item in history for name in item.adapter.pairs})
    layers = {name: _linear(chat, name, history) for name in names}
    with hooked({layer: _branch(chat, history, name, state) for name, layer in layers.items()}):
        yield state


def _branch(chat: ChatModel, history: Sequence[Gated], name: str, state: Dosed) -> Hook:
    here = [i for i, item in enumerate(history) if name in item.adapter.pairs]
    joined = _side_by_side([history[i] for i in here], name)
    down, up = joined.down.to(chat.device), joined.up.to(chat.device)
    owner = torch.tensor([i for i in here for _ in range(history[i].adapter.rank)])
    routed = _routed(chat, name)

    def hook(_module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        inside = inputs[0].float() @ down.T
        if isinstance(state.dose, Tensor):
            gates = _gates(state.dose.to(down.device, torch.float32), owner.to(down.device))
            inside = inside * _spread(gates, inside, name if routed else "")
        else:
            inside = inside * state.dose
        return (output.float() + inside @ up.T).to(output.dtype)

    return hook


def _gates(dose: Float[Tensor, "B ..."], owner: Int[Tensor, " R"]) -> Float[Tensor, "B K"]:
    """Every row's gate, the same for all factors or that of each factor's adapter."""
    return dose[:, owner] if dose.ndim == 2 else dose[:, None]


def _spread(
    gates: Float[Tensor, "B K"], inside: Float[Tensor, "*N R"], expert: str
) -> Float[Tensor, "*M K"]:
    """The rows' gates in a shape that multiplies what a layer sees.

    That is [B, T, R], or [B·T, R] in a layer that takes every position by itself. An expert takes
    some of them, and nobody says whose they are.

    Raises:
        UserError: an expert, and rows of several gates.
    """
    if expert:
        if (gates != gates[:1]).any():
            raise UserError(
                f"{expert} is an expert, which sees some positions of a batch only, so that rows "
                "of one batch cannot differ in its gate. Read one state at a time."
            )
        return gates[:1]
    if inside.ndim == 2:
        return gates.repeat_interleave(len(inside) // len(gates), 0)
    return gates[:, None]


def _routed(chat: ChatModel, name: str) -> bool:
    """Whether the layer is one of several in a list within its block."""
    parts = name.split(".")
    above = [chat.net.get_submodule(".".join(parts[:i])) for i in range(1, len(parts))]
    lists = [module for module in above if isinstance(module, nn.ModuleList)]
    return any(module is not chat.blocks for module in lists)


def _delta(history: Sequence[Gated], name: str, like: Tensor) -> Float[Tensor, "O I"]:
    total = torch.zeros(like.shape, device=like.device)
    for item in history:
        if name in item.adapter.pairs:
            total += item.gate * item.adapter.delta(name).to(like.device)
    return total


def _linear(chat: ChatModel, name: str, history: Sequence[Gated]) -> nn.Linear:
    try:
        layer = chat.net.get_submodule(name)
    except AttributeError as error:
        raise UserError(
            f"An adapter does not fit {chat.name}: the model has no layer {name}."
        ) from error
    for item in history:
        pair = item.adapter.pairs.get(name)
        shape = pair and (pair.up.shape[0], pair.down.shape[1])
        if shape and (
            not isinstance(layer, nn.Linear) or (layer.out_features, layer.in_features) != shape
        ):
            raise UserError(f"An adapter does not fit {chat.name}: layer {name} has other sizes.")
    return cast(nn.Linear, layer)


def concatenated(history: Sequence[Gated]) -> Adapter:
    """The whole history as one adapter at gate 1: factors side by side, ranks added up.

    B·A = Σᵢ gateᵢ·sᵢ·BᵢAᵢ with A = [A₁; A₂; …] and B = [gate₁s₁B₁, gate₂s₂B₂, …], scale 1.

    Raises:
        UserError: an empty history.
    """
    if not history:
        raise UserError("There is nothing to export: no round was folded.")
    names = sorted({name for item in history for name in item.adapter.pairs})
    pairs = {name: _side_by_side(history, name) for name in names}
    return Adapter(pairs, 1.0, sum(item.adapter.rank for item in history))


def _side_by_side(history: Sequence[Gated], name: str) -> Pair:
    """One layer's factors over the history; zeros where an adapter leaves the layer alone."""
    like = next(item.adapter.pairs[name] for item in history if name in item.adapter.pairs)
    downs, ups = [], []
    for item in history:
        rank = item.adapter.rank
        blank = Pair(
            like.down.new_zeros(rank, like.down.shape[1]), like.up.new_zeros(like.up.shape[0], rank)
        )
        pair = item.adapter.pairs.get(name, blank)
        downs.append(pair.down.float())
        ups.append(item.gate * item.adapter.scale * pair.up.float())
    return Pair(torch.cat(downs), torch.cat(ups, dim=1))
