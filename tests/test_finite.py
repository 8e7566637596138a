"""What is not finite: a head that masks tokens counts them as 0, and a broken one is named."""

import math

import pytest
import torch
from torch import Tensor, nn

from steerheal.config import HealSettings, PushSettings, SamplingSettings
from steerheal.heal.barrier import position_losses
from steerheal.heal.train import heal_student
from steerheal.models.chat import prompt_ids
from steerheal.models.generate import Draw, write
from steerheal.models.hooks import adding
from steerheal.models.load import wrap
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states, kl, kl_between, readings
from steerheal.steer.seen import seen_by

import tiny

PADDED = [*range(250, 256), 259]
"""Tokens that the masked head never gives: neither the template nor an answer holds them."""
REAL = [token for token in range(260) if token not in PADDED]


class Masked(nn.Module):
    """A head that sets padded vocabulary to −inf, as several checkpoints do."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head
        self.weight = head.weight

    def forward(self, states: Tensor) -> Tensor:
        logits = self.head(states)
        padded = torch.zeros(logits.shape[-1], dtype=torch.bool)
        padded[PADDED] = True
        return logits.masked_fill(padded, -torch.inf)


def masked(how: str) -> ChatModel:
    net = tiny.net("phi")
    if how == "bias":
        net.lm_head.bias.data[PADDED] = -torch.inf
    else:
        net.lm_head = Masked(net.lm_head)
    return wrap(net, tiny.tokenizer(), name="tiny-masked")


def states(count: int = 6) -> Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(count))


def logs(chat: ChatModel, hidden: Tensor) -> Tensor:
    """Log-probabilities of the tokens that are not masked, in float64: nothing is infinite."""
    return chat.logits(hidden)[:, REAL].double().log_softmax(-1)


# ── 0·ln 0 is 0 ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["bias", "fill"])
@pytest.mark.parametrize("kind", ["kl_fwd", "kl_rev"])
def test_a_masked_heads_losses_and_slopes_are_those_of_the_smaller_vocabulary(
    kind, how: str
) -> None:
    chat, own, reference = masked(how), states().requires_grad_(), states(6) * 0.5
    targets = torch.arange(6) + 65
    p, q = logs(chat, own), logs(chat, reference).detach()
    first, second = (q, p) if kind == "kl_fwd" else (p, q)
    d = (first.exp() * (first - second)).sum(-1)
    (slope,) = torch.autograd.grad(d.sum(), own)
    found = position_losses(chat, own, targets, reference, kind)
    torch.testing.assert_close(found.divergence.double(), d, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.divergence_grad, slope, atol=1e-5, rtol=1e-4)
    assert found.fit.isfinite().all() and found.fit_grad.isfinite().all()


def test_a_masked_teacher_is_distilled_as_on_the_smaller_vocabulary() -> None:
    chat, own, teacher = masked("bias"), states().requires_grad_(), states(6) * 0.5
    t, p = logs(chat, teacher).detach(), logs(chat, own)
    fit = (t.exp() * (t - p)).sum(-1)
    (slope,) = torch.autograd.grad(fit.sum(), own)
    found = position_losses(chat, own, torch.arange(6), None, "nll", teacher=teacher)
    torch.testing.assert_close(found.fit.double(), fit, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.fit_grad, slope, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("how", ["bias", "fill"])
def test_a_masked_heads_readings_are_those_of_the_smaller_vocabulary(how: str) -> None:
    chat, own, other = masked(how), states(), states(6) * 0.5
    q, p = logs(chat, own), logs(chat, other)
    read = readings(chat, own, torch.arange(6) + 65, other)
    wanted = (p.exp() * (p - q)).sum(-1)
    torch.testing.assert_close(
        read.entropies.double(), -(q.exp() * q).sum(-1), atol=1e-5, rtol=1e-4
    )
    assert read.kls is not None
    torch.testing.assert_close(read.kls.double(), wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(kl_between(chat, other, own).double(), wanted, atol=1e-5, rtol=1e-4)


def test_what_has_no_probability_counts_for_nothing_and_what_has_some_is_never_lost() -> None:
    never = -torch.inf
    half, whole = math.log(0.5), 0.0
    p = torch.tensor([[half, half, never], [whole, never, never], [half, half, never]])
    q = torch.tensor([[half, half, never], [half, half, never], [whole, never, never]])
    assert kl(p, q).tolist() == pytest.approx([0.0, math.log(2), math.inf])
    assert kl(p * math.nan, q).isnan().all()


def test_an_infinite_divergence_ends_the_heal_and_is_named() -> None:
    chat = masked("bias")
    pairs = [(prompt_ids(chat, f"q{i}"), [65, 66]) for i in range(4)]
    reference = [torch.full_like(found, 1e38) for found in continuation_states(chat, pairs)]
    settings = HealSettings(barrier="kl_rev", lam=1, tau=0, epochs=1, held_out=0)
    log = heal_student(chat, pairs, reference, settings).log
    assert log.outcome == "rejected" and "divergence" in log.reason


def test_the_barrier_fires_on_a_masked_head() -> None:
    chat = masked("bias")
    pairs = [(prompt_ids(chat, f"q{i}"), [65, 66]) for i in range(16)]
    settings = HealSettings(barrier="kl_fwd", lam=1, tau=0, epochs=2)
    log = heal_student(chat, pairs, continuation_states(chat, pairs), settings).log
    assert log.outcome == "trained"
    assert all(math.isfinite(step.divergence) for step in log.steps)
    assert log.steps[-1].barrier > 0


@pytest.mark.parametrize("budget", [0.02, 0.1])
def test_a_budget_holds_on_a_masked_head(budget: float) -> None:
    chat = masked("bias")
    push = {1: 6 * torch.randn(32, generator=torch.Generator().manual_seed(3))}
    draws = [Draw(f"prompt {i}", 1.0, seed=i) for i in range(4)]
    with adding(chat, push) as dosed:
        found = write(
            chat, draws, SamplingSettings(tokens=16), dosed=dosed,
            push=PushSettings(kl_budget=budget), keep_states=True,
        )  # fmt: skip
    seen = seen_by(chat, found.completions, tiny.persona(), found.states)
    both = zip(found.completions, seen, strict=True)
    kls = [list(zip(item.doses, of.kls, strict=True)) for item, of in both]
    assert any(dose < 1 for row in kls for dose, _ in row)
    assert all(value <= budget + 1e-3 or dose == 0 for row in kls for dose, value in row[1:])
