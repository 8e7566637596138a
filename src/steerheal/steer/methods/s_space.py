"""v_ℓ = U_k U_kᵀ m_ℓ: the mean difference's share in what block ℓ can write.

U holds the left singular directions of the matrices through which the block writes into the
residual stream, side by side, W = [W_attention | W_MLP], shape [D, inputs]. The leading k are those
whose squared singular values make up the settings' share of all of them. Where the block norms
what it writes (Gemma, OLMo 2), the norm's gain belongs to the matrix; its scale does not turn it.

Source: the mean difference (Panickssery et al. 2023, arXiv:2312.06681) restricted to the weights'
singular directions, in the spirit of reading weights by their singular vectors in the residual
stream (Millidge & Black 2022, "The Singular Value Decompositions of Transformer Weight Matrices are
Highly Interpretable"). Foldable: a bias on the block's output.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerheal.errors import UserError
from steerheal.models.hooks import running
from steerheal.models.model import ChatModel
from steerheal.models.shard import gathered
from steerheal.models.wide import wide
from steerheal.steer.methods import mean_difference
from steerheal.steer.methods.method import Method
from steerheal.steer.states import Source

OUTPUT_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
"""Norms on what attention and MLP write; a block has both or writes without a norm."""


def directions(source: Source) -> dict[int, Float[Tensor, " D"]]:
    """The mean difference projected on the writable directions, per block.

    Raises:
        UserError: a block whose writing layers are not found.
    """
    chat, energy = source.chat, source.settings.energy
    bases = {layer: writable(chat, layer, energy) for layer in source.layers}
    means = {
        layer: mean_difference.direction(poles).double() for layer, poles in source.poles().items()
    }
    return {
        layer: (bases[layer] @ (bases[layer].T @ mean)).float() for layer, mean in means.items()
    }


def writable(chat: ChatModel, layer: int, energy: float) -> Float[Tensor, "D K"]:
    """Orthonormal directions that hold a share of the block's writing, float64 on the CPU.

    A share of 1 keeps every direction that the block can write at all.
    """
    parts, gains = writing(chat, layer)
    with gathered(chat.blocks[layer]):
        matrices = [
            wide(_matrix(module, chat.net.dtype)) * wide(gain)[:, None]
            for module, gain in zip(parts, gains, strict=True)
        ]
    gram = sum((matrix @ matrix.T for matrix in matrices[1:]), matrices[0] @ matrices[0].T)
    values, vectors = torch.linalg.eigh(gram)
    # Rounding leaves eigenvalues of 0 as noise of either sign.
    floor = values[-1] * len(values) * torch.finfo(values.dtype).eps
    values, vectors = values.flip(0), vectors.flip(1)
    held = values.where(values > floor, 0).cumsum(0)
    before = torch.cat([held.new_zeros(1), held[:-1]])
    return vectors[:, before < energy * held[-1]].cpu()


@torch.no_grad()
def _matrix(layer: nn.Linear, dtype: torch.dtype) -> Float[Tensor, "O I"]:
    """What the layer does to its input: its weight, and a history that runs beside it."""
    ones = torch.eye(layer.in_features, dtype=dtype, device=layer.weight.device)
    return (layer(ones[None]) - layer(torch.zeros_like(ones[None, :1])))[0].T


@torch.no_grad()
def writing(chat: ChatModel, layer: int) -> tuple[list[nn.Linear], list[Float[Tensor, " D"]]]:
    """The linear layers through which a block writes, each with the gain on its output.

    They are the last to run in attention and in the MLP, whatever their names; a block that holds
    its MLP unwrapped has them among its own children.

    Raises:
        UserError: other than one for attention and one for the MLP.
    """
    block, width = chat.blocks[layer], chat.text_config.hidden_size
    children = dict(block.named_children())
    parts = [part for part in children.values() if not isinstance(part, nn.Linear)]
    groups = [{m for m in part.modules() if isinstance(m, nn.Linear)} for part in parts]
    groups.append({part for part in children.values() if isinstance(part, nn.Linear)})
    with running(set().union(*groups)) as order:
        chat.hidden(torch.zeros(1, 1, dtype=torch.long, device=chat.device), use_cache=False)
    last = [[module for module in order if module in group][-1:] for group in groups]
    found = [module for few in last for module in few if isinstance(module, nn.Linear)]
    if len(found) != 2 or any(module.out_features != width for module in found):
        raise UserError(
            f"s_space does not see what {type(block).__name__} writes: {len(found)} linear layers "
            f"end its parts, where two of width {width} are expected, one of attention and one of "
            "the MLP. Choose another --vector.method."
        )
    ones = torch.ones(width, dtype=chat.net.dtype, device=chat.device)
    if not children.keys() >= set(OUTPUT_NORMS):
        return found, [ones, ones]
    # Ones have a root mean square of 1, so that a norm of them is its gain.
    with gathered(block):
        return found, [children[name](ones[None])[0] for name in OUTPUT_NORMS]


METHOD = Method(directions)
