"""The objective, per position and without [B, T, vocabulary]: L = CE + λ·relu(agg(D) − τ).

D_i at completion position i, from full-vocabulary distributions in float32:
    kl_fwd   KL(reference‖student) = Σ_v q_v (ln q_v − ln p_v)     mass-covering
    kl_rev   KL(student‖reference) = Σ_v p_v (ln p_v − ln q_v)     mode-seeking
agg over a step's positions: mean, rmse = √mean(D²), p95, max. Incoherence is driven by outliers,
which a mean hides.

The output head is not trained, so that gradients stop at the final hidden states: logits exist for
one chunk of positions at a time, and only ∂CE/∂h and ∂D/∂h, as wide as the hidden states, remain.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerheal.models.load import ChatModel
from steerheal.models.score import chunk_of

Barrier = Literal["nll", "kl_fwd", "kl_rev"]
Aggregate = Literal["mean", "rmse", "p95", "max"]


@dataclass(frozen=True)
class PositionLosses:
    """Losses of N positions and their gradients in the final hidden states."""

    ce: Float[Tensor, " N"]
    divergence: Float[Tensor, " N"]
    """Zeros without a barrier."""
    ce_grad: Float[Tensor, "N D"]
    divergence_grad: Float[Tensor, "N D"]


def kl(log_p: Float[Tensor, "N V"], log_q: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """KL(p‖q) per row in nats, from log-probabilities."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


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
    """The aggregated D, λ·relu(D − τ), and the barrier's derivative in every position's D."""
    leaf = values.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        total = aggregated(kind, leaf)
    operating = total.item()
    if lam == 0 or not operating > tau:
        return operating, 0.0, torch.zeros_like(values)
    (slope,) = torch.autograd.grad(total, leaf)
    return operating, lam * (operating - tau), lam * slope


def position_losses(
    chat: ChatModel,
    states: Float[Tensor, "N D"],
    targets: Int[Tensor, " N"],
    reference: Float[Tensor, "N D"] | None,
    kind: Barrier,
) -> PositionLosses:
    """CE and D of every position with their gradients in the states, chunk by chunk.

    Args:
        chat: Whose head turns states into logits.
        states: The student's final hidden states.
        targets: The token that each position predicts.
        reference: The reference's final hidden states at the same positions; None for `nll`.
        kind: Which divergence.
    """
    parts, chunk = [], chunk_of(chat)
    references = [None] * len(states) if reference is None else reference.split(chunk)
    for ours, target, theirs in zip(
        states.detach().split(chunk), targets.split(chunk), references, strict=False
    ):
        parts.append(_chunk(chat, ours, target, theirs, kind))
    return PositionLosses(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _chunk(
    chat: ChatModel,
    states: Float[Tensor, "N D"],
    targets: Int[Tensor, " N"],
    reference: Float[Tensor, "N D"] | None,
    kind: Barrier,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    leaf = states.clone().requires_grad_(True)
    with torch.enable_grad():
        log_p = chat.logits(leaf).log_softmax(-1)
        ce = -log_p.gather(1, targets[:, None])[:, 0]
        if reference is None or kind == "nll":
            (grad,) = torch.autograd.grad(ce.sum(), leaf)
            zeros = torch.zeros_like(ce)
            return ce.detach(), zeros.detach(), grad, torch.zeros_like(grad)
        with torch.no_grad():
            log_q = chat.logits(reference).log_softmax(-1)
        d = divergence(kind, log_p, log_q)
        (ce_grad,) = torch.autograd.grad(ce.sum(), leaf, retain_graph=True)
        (d_grad,) = torch.autograd.grad(d.sum(), leaf)
    return ce.detach(), d.detach(), ce_grad, d_grad
