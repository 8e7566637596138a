"""A vector that is added, as biases of the model: the same states without a hook.

A block's output is x + mlp(norm(x)), so that y = block(x) + d·v is what the block gives whose MLP
ends in a projection with the bias d·v. It holds where nothing stands between that projection and
the residual stream: Llama, Mistral, Qwen 2 and 3, Phi-3. It does not where a norm follows the MLP:
Gemma 2 and 3, OLMo 2. Engines that know no hooks can so steer all the same.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerheal.errors import UserError
from steerheal.models.hooks import recording
from steerheal.models.model import ChatModel
from steerheal.state.vector import SteeringVector

LAST = "down_proj"
"""What an MLP's last projection is called."""
AGREE, STEPS = 1e-4, 8
"""How far states may be from the hook's, as a share of the largest: this, or so many rounding steps
of the model's precision where that is more."""


@contextmanager
def biased(chat: ChatModel, vector: SteeringVector, dose: float = 1.0) -> Iterator[None]:
    """The model whose biases are the vector at a dose; as it was when the context ends.

    A few tokens are read with the hook and with the biases before anything else is.

    Raises:
        UserError: a vector that is not simply added, or blocks of which a bias is not the same.
    """
    if vector.kind != "add":
        raise UserError(
            f"A vector of kind {vector.kind} is no bias: what it does depends on the state. Only "
            "one that is added is."
        )
    with vector.applied(chat, dose):
        expected = _states(chat)
    with ExitStack() as stack:
        for block, direction in vector.layers.items():
            push = (dose * direction).to(chat.device, chat.net.dtype)
            stack.enter_context(_added(_last(chat, block), push))
        gap, scale = (_states(chat) - expected).abs().max(), expected.abs().max()
        if not gap <= max(AGREE, STEPS * torch.finfo(chat.net.dtype).eps) * scale:
            raise _unlike(chat)
        yield


def _last(chat: ChatModel, block: int) -> nn.Linear:
    layer = getattr(getattr(chat.blocks[block], "mlp", None), LAST, None)
    if not isinstance(layer, nn.Linear):
        raise _unlike(chat)
    return layer


def _unlike(chat: ChatModel) -> UserError:
    return UserError(
        f"A vector is no bias in {chat.name} ({type(chat.net).__name__}): its blocks do not add "
        f"what mlp.{LAST} gives to the residual stream as it is. Llama, Mistral, Qwen 2 and 3 and "
        "Phi-3 do."
    )


@contextmanager
def _added(layer: nn.Linear, push: Float[Tensor, " D"]) -> Iterator[None]:
    """The layer with the push on top of its bias, if it has one."""
    before = layer.bias
    more = push if before is None else before.detach() + push
    layer.bias = nn.Parameter(more, requires_grad=False)
    try:
        yield
    finally:
        layer.bias = before


@torch.no_grad()
def _states(chat: ChatModel) -> Float[Tensor, "T D"]:
    """Every block's output on a few tokens, one after the other."""
    ids = torch.arange(8, device=chat.device)[None]
    with recording(chat, list(range(len(chat.blocks)))) as seen:
        chat.net(input_ids=ids)
    return torch.cat([seen[block][0].float() for block in sorted(seen)])
