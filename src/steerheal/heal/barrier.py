"""The objective, per position and without [B, T, vocabulary]: L = fit + λ·relu(agg(D) − τ).

fit_i and D_i at completion position i come from full-vocabulary distributions in float32
(`objectives`, `barriers`); agg is over a step's positions (`aggregates`). A token without
probability counts for nothing, in a sum and in a slope: 0·ln 0 is 0, so that a head may mask tokens
with −inf. Where p > 0 meets q = 0 the divergence is +inf and has no slope: such a step is not
finite and ends the heal.

Off the label y, D is of the distributions over the other tokens, p_v / (1 − p_y). What that leaves
out of KL(q‖p) is the divergence of the two choices between y and the rest (chain rule):
    D = KL((q_y, 1 − q_y)‖(p_y, 1 − p_y)) + (1 − q_y)·D_off

The output head is not trained, so that gradients stop at the final hidden states: logits exist for
one chunk of positions at a time, and only ∂fit/∂h and ∂D/∂h, as wide as the hidden states, remain.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

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
    off_label: bool = False,
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
        off_label: Whether D leaves the target itself out.
    """
    barrier = find(kind) if reference is not None else None
    fit: Objective = OBJECTIVES.find(objective or ("sft" if teacher is None else "distill"))
    head = (taught_by or chat).logits

    def aim(here: slice) -> Tensor:
        if not fit.taught or teacher is None:
            return targets[here]
        return head(teacher[here]).log_softmax(-1)

    def losses(here: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        held = None
        if barrier is not None and reference is not None:
            held = Held(barrier, reference[here], targets[here] if off_label else None)
        return _chunk(chat, states.detach()[here], (fit, partial(aim, here)), held)

    parts = in_chunks(chat, len(states), losses)
    return PositionLosses(*(torch.cat(column) for column in zip(*parts, strict=True)))


class Held(NamedTuple):
    """What a chunk's positions are held to."""

    barrier: Barrier
    reference: Float[Tensor, "N D"]
    label: Int[Tensor, " N"] | None
    """The tokens that D leaves out; None where it is of all."""

    def read(
        self, chat: ChatModel, log_p: Float[Tensor, "N V"], p: Float[Tensor, "N V"]
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, "N V"]]:
        """D and its slope in the student's logits; overwrites log_p."""
        log_q = chat.logits(self.reference).log_softmax(-1)
        if self.label is None:
            return self.barrier.slope(log_p, p, log_q)
        log_p, log_q = others(log_p, self.label), others(log_q, self.label)
        d, slope = self.barrier.slope(log_p, log_p.exp(), log_q)
        return d, whole(slope, self.label)


def others(log_p: Float[Tensor, "N V"], label: Int[Tensor, " N"]) -> Float[Tensor, "N W"]:
    """Log-probabilities of the other tokens given that it is one of them; overwrites log_p.

    The last token stands in the label's place, so that W is V − 1.
    """
    log_p.scatter_(-1, label[:, None], log_p[:, -1:].clone())
    return log_p[:, :-1].log_softmax(-1)


def whole(slope: Float[Tensor, "N W"], label: Int[Tensor, " N"]) -> Float[Tensor, "N V"]:
    """A slope in the other tokens' logits as one in all logits, 0 at the label."""
    found = nn.functional.pad(slope, (0, 1))
    found[:, -1:] = found.gather(-1, label[:, None])
    return found.scatter_(-1, label[:, None], 0)


def _chunk(
    chat: ChatModel,
    states: Float[Tensor, "N D"],
    fitted: tuple[Objective, Callable[[], Tensor]],
    held: Held | None,
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
        if held is None:
            return fit, torch.zeros_like(fit), fit_grad, torch.zeros_like(fit_grad)
        d, slope = held.read(chat, log_p, p)
        return fit, d, fit_grad, pulled_back(slope)
