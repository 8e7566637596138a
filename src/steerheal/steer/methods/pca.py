"""v_ℓ = (u·m) u, with m the mean of the differences d_x = h⁺_ℓ(x) − h⁻_ℓ(x).

u is their first principal direction: it maximises Σ_x (u·d_x)². The differences are not centred:
which of a pair comes first is arbitrary, and with every d_x beside its −d_x the mean is 0. The mean
difference gives the sign, and its projection on u the length, so that a dose means the same as for
the mean difference.

Source: reading vectors of Representation Engineering (Zou et al. 2023, arXiv:2310.01405).
Foldable: a bias on the block's output.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from steerheal.steer.methods import mean_difference
from steerheal.steer.methods.method import Method
from steerheal.steer.states import Poles, Source


def directions(source: Source) -> dict[int, Float[Tensor, " D"]]:
    """The mean difference's share along the first principal direction, per block."""
    return {layer: direction(poles) for layer, poles in source.poles().items()}


def direction(poles: Poles) -> Float[Tensor, " D"]:
    """(u·m) u for two poles; zero where nothing differs."""
    differences = poles.differences().double()
    # N contexts are fewer than D dimensions: the Gram matrix of the contexts is the cheap side.
    weights = torch.linalg.eigh(differences @ differences.T).eigenvectors[:, -1]
    along = torch.nn.functional.normalize(differences.T @ weights, dim=0)
    return ((along @ mean_difference.direction(poles).double()) * along).float()


METHOD = Method(directions)
