"""The only module that registers hooks. Every hook is gone when its context ends or fails."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerheal.models.model import ChatModel

Hook = Callable[[nn.Module, Any, Any], Any]


@contextmanager
def hooked(hooks: Mapping[nn.Module, Hook]) -> Iterator[None]:
    """Forward hooks for the length of the context; undone even when registering fails."""
    with ExitStack() as stack:
        for module, hook in hooks.items():
            stack.enter_context(module.register_forward_hook(hook))
        yield


@dataclass
class Dosed:
    """A dose that hooks read: one number, or one per row or per position of a forward."""

    dose: float | Float[Tensor, "B ..."]

    def set(self, doses: float | Float[Tensor, "B ..."]) -> None:
        """Doses of the rows in the forwards that follow."""
        self.dose = doses

    @contextmanager
    def at(self, doses: float | Float[Tensor, "B ..."]) -> Iterator[None]:
        """Doses of the rows in the forwards inside; those of before come back."""
        before = self.dose
        self.dose = doses
        try:
            yield
        finally:
            self.dose = before


Kind = Literal["add", "ablation", "cosine_gate"]
"""What a vector does to a state."""
Change = Callable[[Tensor, float | Tensor, Tensor], Tensor]
"""States [B, T, D], the dose and a vector [D] to the changed states."""


@contextmanager
def adding(
    chat: ChatModel, vectors: Mapping[int, Float[Tensor, " D"]], dose: float | Tensor = 1.0
) -> Iterator[Dosed]:
    """Adds dose·v to the output of the named blocks: y = block(x) + dose·v, at every position.

    A row whose dose is 0 gets exactly the untouched model's states.

    Args:
        chat: The model, changed only inside the context.
        vectors: One direction per block index.
        dose: A number, or a tensor with one per row of every forward.
    """
    pushes = {layer: vector.to(chat.device, chat.net.dtype) for layer, vector in vectors.items()}
    with _changing(chat, pushes, dose, _added) as state:
        yield state


@contextmanager
def ablating(
    chat: ChatModel, vectors: Mapping[int, Float[Tensor, " D"]], dose: float | Tensor = 1.0
) -> Iterator[Dosed]:
    """Takes the component along v from the named blocks' outputs: y = h − dose·(h·v̂)v̂.

    Dose 1 leaves nothing along v, dose 0 everything; a zero vector takes nothing. Arguments as for
    `adding`; float32 inside, whatever the model's precision.

    Source: directional ablation (Arditi et al. 2024, arXiv:2406.11717).
    """
    units = {
        layer: nn.functional.normalize(vector.to(chat.device, torch.float32), dim=0)
        for layer, vector in vectors.items()
    }
    with _changing(chat, units, dose, _ablated) as state:
        yield state


@contextmanager
def adding_along(
    chat: ChatModel, vectors: Mapping[int, Float[Tensor, " D"]], dose: float | Tensor = 1.0
) -> Iterator[Dosed]:
    """Pushes the named blocks' outputs only where they point along v, position by position.

    y = h + dose·relu(cos(h, v))·v. Arguments as for `adding`; float32 inside, whatever the model's
    precision.

    Source: after conditional activation steering (Lee et al. 2024, arXiv:2409.05907).
    """
    wide = {layer: vector.to(chat.device, torch.float32) for layer, vector in vectors.items()}
    with _changing(chat, wide, dose, _added_along) as state:
        yield state


@contextmanager
def adding_to_rows(chat: ChatModel, pushes: Mapping[int, Float[Tensor, "B D"]]) -> Iterator[None]:
    """Adds to every position of a row that row's own push, after the named blocks.

    Pushes are of the model's device; gradients reach them.
    """
    dtype = chat.net.dtype
    rows = {layer: push[:, None].to(dtype) for layer, push in pushes.items()}
    with _changing(chat, rows, 1.0, _added):
        yield


STEERING = {"add": adding, "ablation": ablating, "cosine_gate": adding_along}
"""The hooks of every kind of vector."""


def _added(states: Tensor, dose: float | Tensor, push: Tensor) -> Tensor:
    return states + per_row(dose, states) * push


def _ablated(states: Tensor, dose: float | Tensor, unit: Tensor) -> Tensor:
    wide = states.float()
    along = (wide @ unit)[..., None]
    return (wide - per_row(dose, wide) * along * unit).to(states.dtype)


def _added_along(states: Tensor, dose: float | Tensor, vector: Tensor) -> Tensor:
    wide = states.float()
    cosine = nn.functional.cosine_similarity(wide, vector, dim=-1)[..., None]
    return (wide + per_row(dose, wide) * cosine.relu() * vector).to(states.dtype)


@contextmanager
def _changing(
    chat: ChatModel, vectors: Mapping[int, Tensor], dose: float | Tensor, change: Change
) -> Iterator[Dosed]:
    """The named blocks' outputs changed by their vectors, at the handle's dose."""
    state, blocks = Dosed(dose), chat.blocks
    with hooked({blocks[i]: _Push(vector, state, change) for i, vector in vectors.items()}):
        yield state


@dataclass(frozen=True)
class _Push:
    """A hook that changes a block's output by a vector."""

    vector: Tensor
    state: Dosed
    change: Change

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        changed = self.change(states, self.state.dose, self.vector)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed


def standing_dose(chat: ChatModel) -> float:
    """The largest dose that the next forward is steered at, by size; 0 without any."""
    hooks = [hook for block in chat.blocks for hook in block._forward_hooks.values()]
    doses = [hook.state.dose for hook in hooks if isinstance(hook, _Push)]
    return max((float(torch.as_tensor(dose).abs().max()) for dose in doses), default=0.0)


def per_row(dose: float | Tensor, states: Float[Tensor, "B T D"]) -> float | Tensor:
    """The dose, one or one per row or per position, in a shape that multiplies states."""
    if not isinstance(dose, Tensor):
        return dose
    if dose.ndim == 2:
        assert dose.shape == states.shape[:2], f"doses {dose.shape} for states {states.shape}"
        return dose.to(states.device, states.dtype)[..., None]
    assert dose.shape[0] == states.shape[0], f"{dose.shape[0]} doses for {states.shape[0]} rows"
    return dose.to(states.device, states.dtype)[:, None, None]


@contextmanager
def recording(chat: ChatModel, layers: list[int]) -> Iterator[dict[int, Tensor]]:
    """Collects each named block's latest output, shape [B, T, D], under its block index."""
    seen: dict[int, Tensor] = {}

    def hook_for(layer: int) -> Hook:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    blocks = chat.blocks
    with hooked({blocks[layer]: hook_for(layer) for layer in layers}):
        yield seen


@contextmanager
def running(modules: Iterable[nn.Module]) -> Iterator[list[nn.Module]]:
    """Collects the modules in the order in which they run."""
    order: list[nn.Module] = []

    def hook(module: nn.Module, _inputs: Any, _output: Any) -> None:
        order.append(module)

    with hooked(dict.fromkeys(modules, hook)):
        yield order


def hook_count(net: nn.Module) -> int:
    """Forward hooks on the model and everything in it; the undo's own check."""
    return sum(len(module._forward_hooks) for module in net.modules())
