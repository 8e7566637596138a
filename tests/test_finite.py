"""What is not finite: a head that masks tokens counts them as 0, and a broken one is named."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steerheal.checks import steering
from steerheal.config import (
    FilterSettings,
    HealSettings,
    PushSettings,
    SamplingSettings,
    VectorSettings,
)
from steerheal.errors import UserError
from steerheal.filter.rules import calibrated, judge
from steerheal.filter.scores import scored_by
from steerheal.heal.barrier import position_losses
from steerheal.heal.train import heal_student
from steerheal.measure import coherence, damage, forced_choice, free, likelihood, vignettes
from steerheal.measure.qualify import qualify
from steerheal.models.chat import prompt_ids
from steerheal.models.generate import Draw, generate, write
from steerheal.models.load import wrap
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states, kl, kl_between, readings
from steerheal.records import Completion
from steerheal.report.page import write_report
from steerheal.state.values import entered
from steerheal.state.vector import SteeringVector
from steerheal.steer.vector import extract
from steerheal.store import read_scores
from test_forced_choice import short
from test_loop import start

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
    found = position_losses(chat, own, torch.arange(6), None, "none", teacher=teacher)
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
    draws = [Draw(f"prompt {i}", seed=i) for i in range(4)]
    (state,) = tiny.steered(push, (1.0,))
    with state.entered(chat) as reader:
        found = write(
            reader, draws, SamplingSettings(tokens=16),
            push=PushSettings(kl_budget=budget), keep_states=True,
        )  # fmt: skip
    scored = scored_by(chat, found.completions, tiny.persona(), found.states)
    both = zip(found.completions, scored, strict=True)
    kls = [list(zip(item.doses, of.kls, strict=True)) for item, of in both]
    assert any(dose < 1 for row in kls for dose, _ in row)
    assert all(value <= budget + 1e-3 or dose == 0 for row in kls for dose, value in row)


# ── logits that no token can be chosen from ─────────────────────────────────────────────────────


ASKED = vignettes.load("everyday")[:7]
STRONG = SteeringVector({2: 1e38 * torch.ones(32)})
"""Overflows float32 at dose 100."""
READERS: dict[str, Callable[[ChatModel], object]] = {
    "likelihood": lambda chat: likelihood.read(chat, ASKED),
    "forced_choice": lambda chat: forced_choice.read(chat, ASKED, short(), think=2),
    "coherence": lambda chat: coherence.read(chat, ["A stone is hard."]),
    "greedy": lambda chat: generate(chat, [Draw("a")], SamplingSettings(tokens=3, temperature=0)),
    "sampled": lambda chat: generate(chat, [Draw("a")], SamplingSettings(tokens=3)),
    "written": lambda chat: write(chat, [Draw("a")], SamplingSettings(tokens=3)),
    "vector": lambda chat: extract(chat, tiny.persona(), ["a", "b"], VectorSettings()),
}


def said(*tokens: int) -> Completion:
    return Completion(prompt="a", text="x", tokens=tokens, dose=0.0, seed=0, ended=False)


def damaged(value: float) -> ChatModel:
    """A model with one number in its last norm that is not finite."""
    chat = tiny.chat()
    chat.net.get_parameter("model.norm.weight").data[3] = value
    return chat


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", [name for name in READERS if name != "vector"])
def test_a_damaged_model_is_named_by_every_reader(name: str, value: float) -> None:
    with pytest.raises(UserError, match="tiny-llama are not finite in float32 without any dose"):
        READERS[name](damaged(value))


@pytest.mark.parametrize("name", READERS)
def test_a_dose_that_is_too_strong_is_named_by_every_reader(name: str) -> None:
    chat = tiny.chat()
    with (
        STRONG.applied(chat, 100.0),
        pytest.raises(UserError, match="not finite at dose 100 in float32"),
    ):
        READERS[name](chat)


def test_a_judge_or_prose_that_a_damaged_base_reads_is_an_error() -> None:
    chat = damaged(math.nan)
    found = free.Answers([said(65, 66)], [torch.zeros(2, 32)])
    with pytest.raises(UserError, match="without any dose"):
        free.judge(chat, found, tiny.persona())
    with pytest.raises(UserError, match="without any dose"):
        damage.plain_perplexity(chat)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_dose_that_overflows_is_named_with_the_precision(
    temperature: float, dtype: torch.dtype
) -> None:
    chat = wrap(tiny.net().to(dtype), tiny.tokenizer(), name="tiny")
    top = 1e38 if dtype == torch.float32 else 6e4
    settings = SamplingSettings(tokens=4, temperature=temperature)
    message = f"at dose 100 in {str(dtype).removeprefix('torch.')}"
    (state,) = tiny.steered({2: top * torch.ones(32)}, (100.0,))
    with state.entered(chat) as reader, pytest.raises(UserError, match=message):
        generate(reader, [Draw("hi", seed=1)], settings)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_broken_row_ends_and_its_neighbours_go_on(temperature: float) -> None:
    chat, settings = tiny.chat(), SamplingSettings(tokens=6, temperature=temperature)
    draws = [Draw("hi", 0, 1), Draw("ho", 1, 2), Draw("hu", 2, 3), Draw("he", 1, 4)]
    with entered(chat, tiny.steered(STRONG.layers, (0.0, 100.0, 1e-38))) as reader:
        found = write(reader, draws, settings, keep_broken=True, keep_states=True)
        alone = [write(reader, [draw], settings, keep_broken=True).completions[0] for draw in draws]
    assert found.completions == alone
    assert [item.broken for item in alone] == [False, True, False, True]
    assert [len(states) for states in found.states] == [6, 0, 6, 0]


def test_a_row_that_breaks_half_way_keeps_what_it_wrote() -> None:
    chat, settings = tiny.chat(), SamplingSettings(tokens=8)
    whole = generate(chat, [Draw("hi", seed=1)], settings)[0]
    looks = 0

    def breaking(self: ChatModel, hidden: Tensor) -> Tensor:
        nonlocal looks
        looks += 1
        found = real(self, hidden)
        return found * math.nan if looks == 4 else found

    real = ChatModel.logits
    (state,) = tiny.steered(STRONG.layers, (1e-44,))
    with pytest.MonkeyPatch.context() as patch, state.entered(chat) as reader:
        patch.setattr(ChatModel, "logits", breaking)
        found = generate(reader, [Draw("hi", seed=1)], settings, keep_broken=True)[0]
    assert found.broken and found.tokens == whole.tokens[:3] and not found.ended


def test_a_budget_takes_a_dose_down_that_breaks_the_model() -> None:
    chat, settings = tiny.chat(), SamplingSettings(tokens=4)
    random = torch.randn(32, generator=torch.Generator().manual_seed(3))
    (state,) = tiny.steered({1: random}, (2.0,))
    with state.entered(chat) as reader:
        push = PushSettings(kl_budget=0.05)
        found = generate(reader, [Draw("hi", seed=1)], settings, push=push)[0]
    assert found.doses[0] < 2.0


def test_a_broken_answer_is_unread_and_dropped_with_its_reason() -> None:
    chat, persona = tiny.chat(), tiny.persona()
    broken = said().model_copy(update={"broken": True, "dose": 3.0})
    (row,) = free.judge(chat, free.Answers([broken], [torch.empty(0, 32)]), persona)
    assert math.isnan(row.logodds) and math.isnan(row.kl_to_base) and row.perplexity == math.inf
    texts = [said(65, 66, 67 + i) for i in range(8)]
    settings = FilterSettings()
    limits = calibrated(texts, scored_by(chat, texts, persona), persona, settings)
    mixed = [texts[0], broken]
    states = [torch.zeros(3, 32), torch.empty(0, 32)]
    verdicts = judge(
        mixed, scored_by(chat, mixed, persona, states), persona,
        calibration=limits, settings=settings,
    )  # fmt: skip
    assert verdicts[1].reasons == ("not finite",)
    assert "not finite" not in verdicts[0].reasons


def test_a_sweep_reads_nan_at_the_dose_that_is_too_strong_and_nowhere_else() -> None:
    chat = tiny.chat()
    with entered(chat, tiny.steered(STRONG.layers, (0.0, 100.0))) as reader:
        rows = likelihood.sweep(reader, ASKED)
        slots = coherence.sweep(reader, ["A stone is hard."])
        said = free.sweep(reader, ["a"], SamplingSettings(tokens=3), seed=0)
    assert [math.isnan(found[0].p[0]) for found in rows] == [False, True]
    assert [math.isnan(found[0].p_ans_any) for found in slots] == [False, True]
    assert [found.completions[0].broken for found in said] == [False, True]


@pytest.mark.slow
def test_a_run_whose_doses_break_the_model_ends_as_starved_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def strong(*args: Any, **more: Any) -> SteeringVector:
        return extract(*args, **more) * 1e38

    tiny.in_place_of(monkeypatch, "VECTOR", strong)
    record = start(tmp_path, dose={"start": 1000}, check={"prompts": 2, "per_foundation": 1})
    (done,) = record.rounds
    assert record.status == "finished" and done.outcome == "starved"
    assert done.reasons == {"not finite": done.drawn}
    assert done.sweep is not None and record.base is not None
    base = read_scores(tmp_path / "run", -1, "base")
    sees = qualify(base, tiny.persona().axis).model_copy(update={"fit": True, "answer_mass": 1.0})
    seen = steering.evidence(done.sweep, sees, tiny.persona().axis, record.base)
    assert steering.CHECK.seen(seen).outcome == "too strong"
    assert "not finite" in write_report(tmp_path / "run").read_text()


def test_a_first_token_above_the_budget_is_read_at_a_lower_dose_than_its_prompt() -> None:
    chat, push = tiny.chat(), PushSettings(kl_budget=0.02)
    vector = {1: torch.randn(32, generator=torch.Generator().manual_seed(3))}
    (state,) = tiny.steered(vector, (2.0,))
    with state.entered(chat) as reader:
        found = write(
            reader, [Draw("hi", seed=1)], SamplingSettings(tokens=1),
            push=push, keep_states=True,
        )  # fmt: skip
    (item,) = found.completions
    (scored,) = scored_by(chat, [item], tiny.persona(), found.states)
    assert item.doses[0] < 2.0
    assert scored.kls[0] <= 0.02 + 1e-3 or item.doses[0] == 0
