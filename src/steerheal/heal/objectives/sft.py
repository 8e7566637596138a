"""CE = −ln p_y of the target y. ∂CE/∂z = p − onehot(y)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerheal.heal.objectives.objective import Chunk, Objective


def fit(
    chunk: Chunk, targets: Int[Tensor, " N"]
) -> tuple[Float[Tensor, " N"], Float[Tensor, "N D"]]:
    """The cross-entropy and its gradient."""
    value = -chunk.log_p.gather(1, targets[:, None])[:, 0]
    # In place and put back: a copy would be as large as the logits.
    chosen = (torch.arange(len(targets), device=targets.device), targets)
    before = chunk.p[chosen]
    chunk.p[chosen] = before - 1
    grad = chunk.pulled_back(chunk.p)
    chunk.p[chosen] = before
    return value, grad


OBJECTIVE = Objective(fit)
