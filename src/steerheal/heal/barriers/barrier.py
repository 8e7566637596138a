"""What a barrier is: D per position, and its slope in the student's logits.

In: the student's log-probabilities log_p and probabilities p, and the reference's log_q, all
[N, V]. A barrier may write over log_p and log_q, which are as large as anything in a heal, and not
over p.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steerheal.tables import BARRIERS

Slope = Callable[
    [Float[Tensor, "N V"], Float[Tensor, "N V"], Float[Tensor, "N V"]],
    tuple[Float[Tensor, " N"], Float[Tensor, "N V"]],
]
"""log_p, p and log_q to D [N] and ∂D/∂z [N, V]."""
Divergence = Callable[[Float[Tensor, "N V"], Float[Tensor, "N V"]], Float[Tensor, " N"]]
"""log_p and log_q to D [N]: what one writes in Python."""


@dataclass(frozen=True)
class Barrier:
    """A divergence whose slope is written out."""

    slope: Slope


def find(name: str) -> Barrier | None:
    """The barrier of that name; a bare function of two log-probabilities is one; None is none.

    Raises:
        UserError: no such barrier.
    """
    found = BARRIERS.find(name)
    if found is None or isinstance(found, Barrier):
        return found
    return Barrier(differentiated(found))


def differentiated(divergence: Divergence) -> Slope:
    """The slope of a divergence, by autograd.

    With log_p = z − ln Σ exp z, ∂D/∂z_v = g_v − p_v Σ_u g_u, g the slope in log_p.
    """

    def slope(
        log_p: Float[Tensor, "N V"], p: Float[Tensor, "N V"], log_q: Float[Tensor, "N V"]
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, "N V"]]:
        leaf = log_p.detach().requires_grad_(True)
        with torch.enable_grad():
            values = divergence(leaf, log_q)
            (g,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach(), g.addcmul(p, g.sum(-1, keepdim=True), value=-1)

    return slope


def summed(terms: Float[Tensor, "N V"], p: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """Σ_v p_v·x_v per row, from those products; where p is 0 they are made 0, as in `expected`."""
    total = terms.sum(-1)
    return total if total.isfinite().all() else terms.masked_fill_(p == 0, 0).sum(-1)


def towards(
    log_t: Float[Tensor, "N V"], log_p: Float[Tensor, "N V"], p: Float[Tensor, "N V"]
) -> tuple[Float[Tensor, " N"], Float[Tensor, "N V"]]:
    """KL(t‖p) per row and its slope in p's logits, p − t; overwrites log_t."""
    t = log_t.exp()
    value = summed(log_t.sub_(log_p).mul_(t), t)
    return value, torch.sub(p, t, out=log_t)
