"""D over a step's positions, as one number: rows of `tables.AGGREGATES`.

Incoherence is driven by outliers, which a mean hides.
"""

from jaxtyping import Float
from torch import Tensor


def mean(values: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """The mean."""
    return values.mean()


def rmse(values: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """√mean(D²)."""
    return values.square().mean().sqrt()


def p95(values: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """The 95th percentile."""
    return values.quantile(0.95)


def largest(values: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """The maximum."""
    return values.max()
