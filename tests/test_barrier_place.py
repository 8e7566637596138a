"""Where a barrier reads D: off the token that stands there, and on text that is not fitted."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steerheal.config import HealSettings
from steerheal.errors import UserError
from steerheal.heal.barrier import Held, others, position_losses, whole
from steerheal.heal.barriers.barrier import Barrier, differentiated, find
from steerheal.heal.train import heal_student
from steerheal.heal.trainer import Trainer
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states, kl
from steerheal.pipeline.surroundings import notes
from test_anchor import drift, unrelated
from test_train import assert_equal, factors, healed, pairs_of, settings

import tiny

LABEL = torch.tensor([0, 3, 10, 4, 7])
"""The first token, the last one of eleven, and some between."""
ASIDE = {"barrier": "kl_fwd", "barrier_text": "unrelated", "tau": 0.0, "lam": 10.0}


def logits(seed: int) -> Tensor:
    return 2 * torch.randn(len(LABEL), 11, generator=torch.Generator().manual_seed(seed))


def squared(log_p: Tensor, log_q: Tensor) -> Tensor:
    """A divergence as one writes it in Python."""
    return (log_p.exp() - log_q.exp()).square().sum(-1)


def kind_of(name: str) -> Barrier:
    found = Barrier(differentiated(squared)) if name == "python" else find(name)
    assert found is not None
    return found


class Head(ChatModel):
    """A model that is its head alone: states are logits."""

    def __init__(self) -> None:
        pass

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


def conditional(z: Tensor) -> Tensor:
    """ln p(v | v is not the label), the label's column taken out."""
    keep = torch.ones_like(z).scatter(-1, LABEL[:, None], 0).bool()
    return z.log_softmax(-1)[keep].view(len(z), -1).log_softmax(-1)


@pytest.mark.parametrize("name", ["kl_fwd", "kl_rev", "python"])
def test_off_the_label_d_and_its_slope_are_those_of_the_other_tokens(name: str) -> None:
    student, reference = logits(1), logits(2)
    held = Held(kind_of(name), reference, LABEL)
    d, slope = held.read(Head(), student.log_softmax(-1), student.softmax(-1))
    leaf = student.clone().requires_grad_(True)
    p, q = conditional(leaf), conditional(reference)
    wanted = {"kl_fwd": kl(q, p), "kl_rev": kl(p, q), "python": squared(p, q)}[name]
    (grad,) = torch.autograd.grad(wanted.sum(), leaf)
    torch.testing.assert_close(d, wanted.detach())
    torch.testing.assert_close(slope, grad)
    assert slope.gather(-1, LABEL[:, None]).abs().max() == 0


def test_the_chain_rule_says_what_the_label_adds() -> None:
    student, reference = logits(1), logits(2)
    p, q = student.log_softmax(-1), reference.log_softmax(-1)
    of_p, of_q = (one.exp().gather(-1, LABEL[:, None])[:, 0] for one in (p, q))
    coin = of_q * (of_q / of_p).log() + (1 - of_q) * ((1 - of_q) / (1 - of_p)).log()
    d, _ = Held(kind_of("kl_fwd"), reference, LABEL).read(Head(), p.clone(), p.exp())
    torch.testing.assert_close(kl(q, p), coin + (1 - of_q) * d)


def test_what_the_fit_does_to_its_own_token_alone_is_not_held_back() -> None:
    reference = logits(2)
    student = reference.scatter_add(-1, LABEL[:, None], torch.full((len(LABEL), 1), 3.0))
    p = student.log_softmax(-1)
    d, slope = Held(kind_of("kl_rev"), reference, LABEL).read(Head(), p.clone(), p.exp())
    assert d.abs().max() < 1e-6 and slope.abs().max() < 1e-6
    assert (kl(p, reference.log_softmax(-1)) > 0.02).all()


def test_the_label_is_taken_out_and_put_back_in_its_place() -> None:
    z = logits(3)
    rest = others(z.log_softmax(-1), LABEL)
    assert rest.shape == (len(LABEL), 10)
    torch.testing.assert_close(rest.exp().sum(-1), torch.ones(len(LABEL)))
    column = torch.arange(11.0).expand(len(LABEL), -1)
    back = whole(column.clone().scatter(-1, LABEL[:, None], column[:, -1:])[:, :-1], LABEL)
    torch.testing.assert_close(back, column.scatter(-1, LABEL[:, None], 0))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_gradients_in_the_states_are_those_of_the_whole_model(family: str) -> None:
    chat = tiny.chat(family)
    states = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
    reference = torch.randn(6, 32, generator=torch.Generator().manual_seed(2))
    targets = torch.arange(6)
    found = position_losses(chat, states, targets, reference, "kl_rev", off_label=True)
    leaf = states.clone().requires_grad_(True)
    with torch.enable_grad():
        mask = nn.functional.one_hot(targets, chat.logits(leaf).shape[-1]).bool()
        p, q = (
            chat.logits(one).masked_fill(mask, -1e9).log_softmax(-1) for one in (leaf, reference)
        )
        wanted = kl(p, q)
        (grad,) = torch.autograd.grad(wanted.sum(), leaf)
    torch.testing.assert_close(found.divergence, wanted.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.divergence_grad, grad, atol=1e-5, rtol=1e-4)
    plain = position_losses(chat, states, targets, reference, "kl_rev")
    assert torch.equal(plain.fit_grad, found.fit_grad)
    assert not torch.allclose(plain.divergence, found.divergence)


@pytest.mark.long
def test_a_heal_off_the_label_fits_more_under_the_same_barrier() -> None:
    chat = tiny.chat()
    ends = [
        healed(chat, settings(barrier="kl_fwd", epochs=6, lam=5.0, off_label=off)).log.steps[-1].ce
        for off in (False, True)
    ]
    assert ends[1] < ends[0]


@pytest.mark.long
def test_a_barrier_on_unrelated_text_holds_that_text() -> None:
    chat = tiny.chat()
    data = unrelated(chat)
    free = healed(chat, settings(barrier="none", epochs=6))
    held = healed(chat, settings(epochs=6, **ASIDE), anchor=data)
    assert drift(chat, held, data) < drift(chat, free, data) / 2
    steps = held.log.steps
    assert steps[-1].ce < steps[0].ce
    # At the start the student is the reference.
    assert steps[0].divergence == pytest.approx(0, abs=1e-6) and steps[-1].divergence > 0
    last = steps[-1]
    assert last.barrier == pytest.approx(10.0 * last.divergence, rel=1e-4) and last.pressure > 0
    assert math.isnan(last.anchor) and held.log.barrier_fired > 0


@pytest.mark.long
def test_below_its_margin_it_is_the_heal_without_a_barrier() -> None:
    chat = tiny.chat()
    free = healed(chat, settings(barrier="none", epochs=3))
    held = healed(chat, settings(epochs=3, **ASIDE | {"tau": 1e3}), anchor=unrelated(chat))
    ours, theirs = factors(free), factors(held)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)
    assert held.log.barrier_fired == 0


@pytest.mark.long
def test_the_mean_there_is_the_anchor() -> None:
    """λ·mean KL(reference‖student) on unrelated text, whichever of the two asks for it."""
    chat = tiny.chat()
    data = unrelated(chat)
    asked: dict[str, Any] = {"epochs": 3, "rows": 4, "anchor_rows": 3}
    mean = settings(**asked, **ASIDE | {"aggregate": "mean", "lam": 2.0})
    ours = factors(healed(chat, mean, anchor=data))
    theirs = factors(healed(chat, settings(barrier="none", anchor=2.0, **asked), anchor=data))
    for name in ours | theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("aggregate", ["rmse", "max"])
def test_it_is_the_same_however_many_forwards_read_it(
    aggregate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = tiny.chat()
    asked = settings(epochs=2, **ASIDE | {"aggregate": aggregate}, anchor=0.5, anchor_rows=3)
    whole_step = healed(chat, asked, anchor=unrelated(chat))
    begin = Trainer.__init__

    def short_of_memory(self: Trainer, *given: Any, **more: Any) -> None:
        begin(self, *given, **more)
        self._parts = 2 * self._least

    monkeypatch.setattr(Trainer, "__init__", short_of_memory)
    split = healed(chat, asked, anchor=unrelated(chat))
    for one, other in zip(whole_step.log.steps, split.log.steps, strict=True):
        assert one.divergence == pytest.approx(other.divergence, rel=1e-3, abs=1e-5)
        assert one.gradient == pytest.approx(other.gradient, rel=1e-3)


def test_without_its_text_it_is_refused() -> None:
    chat = tiny.chat()
    with pytest.raises(UserError, match="A barrier on unrelated text needs"):
        heal_student(chat, pairs_of(chat), None, settings(**ASIDE))


@pytest.mark.long
def test_it_needs_no_states_of_the_text_that_is_fitted() -> None:
    chat = tiny.chat()
    data, pairs = unrelated(chat), pairs_of(chat)
    asked = settings(epochs=2, **ASIDE)
    alone = heal_student(chat, pairs, None, asked, anchor=data)
    given = heal_student(chat, pairs, continuation_states(chat, pairs), asked, anchor=data)
    assert_equal(alone, given)


def test_without_a_barrier_a_run_says_that_they_do_nothing() -> None:
    asked = HealSettings(off_label=True, barrier_text="unrelated")
    (said,) = (note for note in notes(tiny.chat(), asked) if "without effect" in note)
    assert "heal.barrier_text, heal.off_label" in said
    assert not asked.reads_unrelated
