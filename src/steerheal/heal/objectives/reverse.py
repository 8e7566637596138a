"""KL(student‖teacher) = Σ_v p_v (ln p_v − ln t_v): mode-seeking.

∂KL/∂z_v = p_v (ln p_v − ln t_v − KL).

On the student's own text this is on-policy distillation (Agarwal et al. 2024, arXiv:2306.13649; Gu
et al. 2024, arXiv:2306.08543): what the student does wrong is where it is corrected.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from steerheal.heal.barriers.barrier import summed
from steerheal.heal.objectives.objective import Chunk, Objective


def fit(
    chunk: Chunk, teacher: Float[Tensor, "N V"]
) -> tuple[Float[Tensor, " N"], Float[Tensor, "N D"]]:
    """The divergence to the teacher's log-probabilities, which go, and its gradient."""
    found = torch.sub(chunk.log_p, teacher, out=teacher).mul_(chunk.p)
    value = summed(found, chunk.p)
    return value, chunk.pulled_back(found.addcmul_(chunk.p, value[:, None], value=-1))


OBJECTIVE = Objective(fit, taught=True)
