"""The only module that registers hooks. Every hook is gone when its context ends or fails."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from steerheal.models.load import ChatModel

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
    """A coefficient that hooks read: one number, or one per row of the next forwards."""

    dose: float | Float[Tensor, " B"]

    def set(self, doses: float | Float[Tensor, " B"]) -> None:
        """Coefficients of the rows in the forwards that follow."""
        self.dose = doses


@contextmanager
def adding(
    chat: ChatModel, vectors: Mapping[int, Float[Tensor, " D"]], dose: float | Tensor = 1.0
) -> Iterator[Dosed]:
    """Adds dose·v to the output of the named blocks: y = block(x) + dose·v, at every position.

    A row whose coefficient is 0 gets exactly the untouched model's states.

    Args:
        chat: The model, changed only inside the context.
        vectors: One direction per block index.
        dose: A number, or a tensor with one coefficient per row of every forward.
    """
    state = Dosed(dose)
    pushes = {layer: vector.to(chat.device, chat.net.dtype) for layer, vector in vectors.items()}

    def hook_for(layer: int) -> Hook:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            states = output[0] if isinstance(output, tuple) else output
            pushed = states + per_row(state.dose, states) * pushes[layer]
            return (pushed, *output[1:]) if isinstance(output, tuple) else pushed

        return hook

    blocks = chat.blocks
    with hooked({blocks[layer]: hook_for(layer) for layer in pushes}):
        yield state


def per_row(dose: float | Tensor, states: Float[Tensor, "B T D"]) -> float | Tensor:
    """The coefficient in a shape that multiplies states."""
    if not isinstance(dose, Tensor):
        return dose
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


def hook_count(net: nn.Module) -> int:
    """Forward hooks on the model and everything in it; the undo's own check."""
    return sum(len(module._forward_hooks) for module in net.modules())
