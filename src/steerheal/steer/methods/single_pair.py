"""v_ℓ = h⁺_ℓ(x) − h⁻_ℓ(x) for one context x, the first.

Source: Activation Addition (Turner et al. 2023, arXiv:2308.10248), which adds the difference of one
pair of prompts. Foldable: a bias on the block's output.
"""

from jaxtyping import Float
from torch import Tensor

from steerheal.steer.methods.method import Method
from steerheal.steer.states import Poles, Source

CONTEXTS = 1
"""Contexts that are read, however many are given."""


def directions(source: Source) -> dict[int, Float[Tensor, " D"]]:
    """The first context's difference per block."""
    return {layer: direction(poles) for layer, poles in source.poles().items()}


def direction(poles: Poles) -> Float[Tensor, " D"]:
    """The first context's difference."""
    return poles.differences()[0]


METHOD = Method(directions, contexts=CONTEXTS)
