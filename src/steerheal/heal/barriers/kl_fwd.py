"""D = KL(reference‖student) = Σ_v q_v (ln q_v − ln p_v): mass-covering. ∂D/∂z = p − q."""

from jaxtyping import Float
from torch import Tensor

from steerheal.heal.barriers.barrier import Barrier, towards


def slope(
    log_p: Float[Tensor, "N V"], p: Float[Tensor, "N V"], log_q: Float[Tensor, "N V"]
) -> tuple[Float[Tensor, " N"], Float[Tensor, "N V"]]:
    """D and its slope; overwrites log_q."""
    return towards(log_q, log_p, p)


BARRIER = Barrier(slope)
