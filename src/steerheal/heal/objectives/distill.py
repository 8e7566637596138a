"""KL(teacher‖student) = Σ_v t_v (ln t_v − ln p_v). ∂KL/∂z = p − t."""

from jaxtyping import Float
from torch import Tensor

from steerheal.heal.barriers.barrier import towards
from steerheal.heal.objectives.objective import Chunk, Objective


def fit(
    chunk: Chunk, teacher: Float[Tensor, "N V"]
) -> tuple[Float[Tensor, " N"], Float[Tensor, "N D"]]:
    """The divergence from the teacher's log-probabilities, which go, and its gradient."""
    value, slope = towards(teacher, chunk.log_p, chunk.p)
    return value, chunk.pulled_back(slope)


OBJECTIVE = Objective(fit, taught=True)
