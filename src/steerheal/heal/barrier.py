"""The objective, per position and without [B, T, vocabulary]: L = fit + λ·relu(agg(D) − τ).

fit_i and D_i at completion position i come from full-vocabulary distributions in float32
(`objectives`, `barriers`); agg is over a step's positions (`aggregates`). A token without
probability counts for nothing, in a sum and in a slope: 0·ln 0 is 0, so that a head may mask tokens
with −inf. Where p > 0 meets q = 0 the divergence is +inf and has no slope: such a step is not
finite and ends the heal.

The output head is not trained, so that gradients stop at the final hidden states: logits exist for
one chunk of positions at a time, and only ∂fit/∂h and ∂D/∂h, as wide as the hidden states, remain.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerheal.heal.barriers.barrier import Barrier, find
from steerheal.heal.objectives.objective import Chunk, Objective
from steerheal.models.model import ChatModel
from steerheal.models.score import in_chunks
from steerheal.tables import AGGREGATES, OBJECTIVES


@dataclass(frozen=True)
class PositionLosses:
    """Losses of N positions and their gradients in the final hidden states."""

    fit: Float[Tensor, " N"]
    """Cross-entropy of the targets; KL(teacher‖student) where a teacher was given."""
    divergence: Float[Tensor, " N"]
    """Zeros without a barrier."""
    fit_grad: Float[Tensor, "N D"]
    divergence_grad: Float[Tensor, "N D"]


def hinge_weights(
    kind: str, values: Float[Tensor, " N"], lam: float, tau: float
) -> tuple[float, float, Float[Tensor, " N"]]:
    """The aggregated D, λ·relu(D − τ), and the barrier's derivative in every position's D.

    Computed on the CPU: a number per position is little, and not every device has quantiles.
    """
    leaf = values.detach().cpu().clone().requires_grad_(True)
    with torch.enable_grad():
        total = AGGREGATES.find(kind)(leaf)
    operating = total.item()
    if lam == 0 or not operating > tau:
        return operating, 0.0, torch.zeros_like(values)
    (slope,) = torch.autograd.grad(total, leaf)
    return operating, lam * (operating - tau), (lam * slope).to(values.device)


def position_losses(
    chat: ChatModel,
    states: Float[Tensor, "N D"],
    targets: Int[Tensor, " N"],
    reference: Float[Tensor, "N D"] | None,
    kind: str,
    *,
    objective: str | None = None,
    teacher: Float[Tensor, "N W"] | None = None,
    taught_by: ChatModel | None = None,
) -> PositionLosses:
    """The fit and D of every position with their gradients in the states, chunk by chunk.

    Args:
        chat: Whose head turns states into logits.
        states: The student's final hidden states.
        targets: The token that each position predicts.
        reference: The reference's final hidden states there; None without a barrier.
        kind: The barrier's name.
        objective: The objective's name; when not given, distill where a teacher is, else sft.
        teacher: What the teacher's logits are made of; None without one.
        taught_by: What the teacher's door gave; the student's own head when not given.
    """
    barrier = find(kind) if reference is not None else None
    fit: Objective = OBJECTIVES.find(objective or ("sft" if teacher is None else "distill"))
    head = (taught_by or chat).logits

    def aim(here: slice) -> Tensor:
        if not fit.taught or teacher is None:
            return targets[here]
        return head(teacher[here]).log_softmax(-1)

    def losses(here: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        theirs = None if barrier is None or reference is None else reference[here]
        return _chunk(chat, states.detach()[here], (fit, partial(aim, here)), barrier, theirs)

    parts = in_chunks(chat, len(states), losses)
    return PositionLosses(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _chunk(
    chat: ChatModel,
    states: Float[Tensor, "N D"],
    fitted: tuple[Objective, Callable[[], Tensor]],
    barrier: Barrier | None,
    reference: Float[Tensor, "N D"] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Only the head itself is differentiated by autograd, whatever its kind.

    The gradients in the logits are written out and computed in place: a pass over a chunk of
    logits costs memory traffic, and autograd would make more than twice as many.
    """
    (objective, aim), leaf = fitted, states.clone().requires_grad_(True)
    with torch.enable_grad():
        logits = chat.logits(leaf)

    def pulled_back(slope: Float[Tensor, "N V"]) -> Float[Tensor, "N D"]:
        (grad,) = torch.autograd.grad(logits, leaf, slope, retain_graph=True)
        return grad

    with torch.no_grad():
        log_p = logits.log_softmax(-1)
        p = log_p.exp()
        fit, fit_grad = objective.fit(Chunk(log_p, p, pulled_back), aim())
        if barrier is None or reference is None:
            return fit, torch.zeros_like(fit), fit_grad, torch.zeros_like(fit_grad)
        d, slope = barrier.slope(log_p, p, chat.logits(reference).log_softmax(-1))
        return fit, d, fit_grad, pulled_back(slope)
