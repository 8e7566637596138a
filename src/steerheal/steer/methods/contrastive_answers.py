"""v_ℓ = mean over contexts x of (h̄_ℓ(x, y⁺) − h̄_ℓ(x, y⁻)), h̄ the mean over the answer's tokens.

y⁺ and y⁻ are greedy answers to x under each pole's system prompt; the states are read without any
system prompt, so that only the answers differ.

Source: Contrastive Activation Addition (Panickssery et al. 2023, arXiv:2312.06681), with answers
that the model writes itself instead of the two letters of a multiple choice. Foldable: a bias on
the block's output.
"""

from jaxtyping import Float
from torch import Tensor

from steerheal.steer.methods import mean_difference
from steerheal.steer.methods.method import Method
from steerheal.steer.states import SIDES, Source, paired


def directions(source: Source) -> dict[int, Float[Tensor, " D"]]:
    """The mean difference of the two poles' answers per block."""
    prompts = source.prompts()
    sides = [source.read(prompts, source.answers(side)) for side in SIDES]
    return {layer: mean_difference.direction(poles) for layer, poles in paired(*sides).items()}


METHOD = Method(directions, answers=True)
