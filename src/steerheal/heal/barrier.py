"""The objective, per position and without [B, T, vocabulary]: L = fit + λ·relu(agg(D) − τ).

fit_i at completion position i, token y_i, from full-vocabulary distributions in float32, p the
student's, q the reference's, t the teacher's:
    sft      CE = −ln p_{y_i}
    distill  KL(teacher‖student) = Σ_v t_v (ln t_v − ln p_v)
D_i:
    kl_fwd   KL(reference‖student) = Σ_v q_v (ln q_v − ln p_v)     mass-covering
    kl_rev   KL(student‖reference) = Σ_v p_v (ln p_v − ln q_v)     mode-seeking
agg over a step's positions: mean, rmse = √mean(D²), p95, max. Incoherence is driven by outliers,
which a mean hides. A token without probability counts for nothing, in a sum and in a slope: 0·ln 0
is 0, so that a head may mask tokens with −inf. Where p > 0 meets q = 0 the divergence is +inf and
has no slope: such a step is not finite and ends the heal.

With z the student's logits: ∂CE/∂z = p − onehot(y), ∂KL(t‖p)/∂z = p − t, ∂kl_fwd/∂z = p − q,
∂kl_rev/∂z_v = p_v (ln p_v − ln q_v − D). The output head is not trained, so that gradients stop at
the final hidden states: logits exist for one chunk of positions at a time, and only ∂fit/∂h and
∂D/∂h, as wide as the hidden states, remain.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerheal.models.model import ChatModel
from steerheal.models.score import chunk_of, kl

Barrier = Literal["nll", "kl_fwd", "kl_rev"]
Aggregate = Literal["mean", "rmse", "p95", "max"]


@dataclass(frozen=True)
class PositionLosses:
    """Losses of N positions and their gradients in the final hidden states."""

    fit: Float[Tensor, " N"]
    """Cross-entropy of the targets; KL(teacher‖student) where a teacher was given."""
    divergence: Float[Tensor, " N"]
    """Zeros without a barrier."""
    fit_grad: Float[Tensor, "N D"]
    divergence_grad: Float[Tensor, "N D"]


def divergence(
    kind: Barrier, student: Float[Tensor, "N V"], reference: Float[Tensor, "N V"]
) -> Float[Tensor, " N"]:
    """D per position from log-probabilities; zeros for `nll`."""
    match kind:
        case "nll":
            return student.new_zeros(len(student))
        case "kl_fwd":
            return kl(reference, student)
        case "kl_rev":
            return kl(student, reference)


def aggregated(kind: Aggregate, values: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """D over a step's positions."""
    match kind:
        case "mean":
            return values.mean()
        case "rmse":
            return values.square().mean().sqrt()
        case "p95":
            return values.quantile(0.95)
        case "max":
            return values.max()


def hinge_weights(
    kind: Aggregate, values: Float[Tensor, " N"], lam: float, tau: float
) -> tuple[float, float, Float[Tensor, " N"]]:
    """The aggregated D, λ·relu(D − τ), and the barrier's derivative in every position's D.

    Computed on the CPU: a number per position is little, and not every device has quantiles.
    """
    leaf = values.detach().cpu().clone().requires_grad_(True)
    with torch.enable_grad():
        total = aggregated(kind, leaf)
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
    kind: Barrier,
    *,
    teacher: Float[Tensor, "N W"] | None = None,
    taught_by: ChatModel | None = None,
) -> PositionLosses:
    """The fit and D of every position with their gradients in the states, chunk by chunk.

    Args:
        chat: Whose head turns states into logits.
        states: The student's final hidden states.
        targets: The token that each position predicts.
        reference: The reference's final hidden states at the same positions; None for `nll`.
        kind: Which divergence.
        teacher: What the teacher's logits are made of; None fits the targets instead.
        taught_by: What the teacher's door gave; the student's own head when not given.
    """
    head = (taught_by or chat).logits
    parts, chunk = [], chunk_of(chat)
    for start in range(0, len(states), chunk):
        here = slice(start, start + chunk)
        aim = targets[here] if teacher is None else teacher[here]
        theirs = None if reference is None or kind == "nll" else reference[here]
        parts.append(_chunk(chat, states.detach()[here], aim, theirs, kind, head=head))
    return PositionLosses(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _chunk(
    chat: ChatModel,
    states: Float[Tensor, "N D"],
    aim: Int[Tensor, " N"] | Float[Tensor, "N W"],
    reference: Float[Tensor, "N D"] | None,
    kind: Barrier,
    *,
    head: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Only the head itself is differentiated by autograd, whatever its kind.

    The gradients in the logits are written out and computed in place: a pass over a chunk of
    logits costs memory traffic, and autograd would make more than twice as many.
    """
    leaf = states.clone().requires_grad_(True)
    with torch.enable_grad():
        logits = chat.logits(leaf)

    def pulled_back(slope: Float[Tensor, "N V"]) -> Float[Tensor, "N D"]:
        (grad,) = torch.autograd.grad(logits, leaf, slope, retain_graph=True)
        return grad

    with torch.no_grad():
        log_p = logits.log_softmax(-1)
        p = log_p.exp()
        fit, fit_grad = _fit(head, log_p, p, aim, pulled_back)
        if reference is None:
            return fit, torch.zeros_like(fit), fit_grad, torch.zeros_like(fit_grad)
        log_q = chat.logits(reference).log_softmax(-1)
        if kind == "kl_fwd":
            d, slope = _towards(log_q, log_p, p)
        else:
            slope = log_p.sub_(log_q).mul_(p)
            d = _summed(slope, p)
            slope.addcmul_(p, d[:, None], value=-1)
        return fit, d, fit_grad, pulled_back(slope)


def _fit(
    head: Callable[[Tensor], Tensor],
    log_p: Float[Tensor, "N V"],
    p: Float[Tensor, "N V"],
    aim: Int[Tensor, " N"] | Float[Tensor, "N W"],
    pulled_back: Callable[[Tensor], Tensor],
) -> tuple[Float[Tensor, " N"], Float[Tensor, "N D"]]:
    """The fit to tokens, or to a teacher's states, and its gradient; p is left as it is."""
    if aim.is_floating_point():
        fit, slope = _towards(head(aim).log_softmax(-1), log_p, p)
        return fit, pulled_back(slope)
    fit = -log_p.gather(1, aim[:, None])[:, 0]
    chosen = (torch.arange(len(aim), device=aim.device), aim)
    before = p[chosen]
    p[chosen] = before - 1
    grad = pulled_back(p)
    p[chosen] = before
    return fit, grad


def _towards(
    log_t: Float[Tensor, "N V"], log_p: Float[Tensor, "N V"], p: Float[Tensor, "N V"]
) -> tuple[Float[Tensor, " N"], Float[Tensor, "N V"]]:
    """KL(t‖p) per row and its slope in p's logits, p − t; overwrites log_t."""
    t = log_t.exp()
    value = _summed(log_t.sub_(log_p).mul_(t), t)
    return value, torch.sub(p, t, out=log_t)


def _summed(terms: Float[Tensor, "N V"], p: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """Σ_v p_v·x_v per row, from those products; where p is 0 they are made 0, as in `expected`."""
    total = terms.sum(-1)
    return total if total.isfinite().all() else terms.masked_fill_(p == 0, 0).sum(-1)
