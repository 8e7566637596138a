"""D = KL(student‖reference) = Σ_v p_v (ln p_v − ln q_v): mode-seeking.

∂D/∂z_v = p_v (ln p_v − ln q_v − D).
"""

from jaxtyping import Float
from torch import Tensor

from steerheal.heal.barriers.barrier import Barrier, summed


def slope(
    log_p: Float[Tensor, "N V"], p: Float[Tensor, "N V"], log_q: Float[Tensor, "N V"]
) -> tuple[Float[Tensor, " N"], Float[Tensor, "N V"]]:
    """D and its slope; overwrites log_p."""
    found = log_p.sub_(log_q).mul_(p)
    d = summed(found, p)
    return d, found.addcmul_(p, d[:, None], value=-1)


BARRIER = Barrier(slope)
