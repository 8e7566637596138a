"""v_ℓ = mean over contexts x of (h⁺_ℓ(x) − h⁻_ℓ(x)), at raw scale: dose 1 is one whole difference.

Source: the difference of means in Contrastive Activation Addition (Panickssery et al. 2023,
arXiv:2312.06681), between system prompts instead of answers. Foldable: a bias on the block's
output.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from steerheal.steer.methods.method import Method
from steerheal.steer.states import Poles, Source


def directions(source: Source) -> dict[int, Float[Tensor, " D"]]:
    """The mean difference per block."""
    return {layer: direction(poles) for layer, poles in source.poles().items()}


def direction(poles: Poles) -> Float[Tensor, " D"]:
    """The mean difference of two poles; exactly 0 where they read the same."""
    up, down = (
        torch.stack([states.sum(0) for states in pole.batches]).sum(0)
        for pole in (poles.positive, poles.negative)
    )
    return (up - down) / len(poles.positive.order)


METHOD = Method(directions)
