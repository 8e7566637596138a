"""DPO: its gradient is autograd's, it prefers what it is shown, and equal answers pull nowhere."""

import math
from typing import Any

import pytest
import torch

from steerheal.config import HealSettings, SamplingSettings
from steerheal.errors import UserError
from steerheal.heal.preference import Rivals, opposed, rivals_of
from steerheal.heal.round import heal
from steerheal.heal.train import heal_student
from steerheal.models.chat import prompt_ids, text_ids
from steerheal.models.score import Pair, token_logprobs
from steerheal.records import Completion
from steerheal.state.values import base
from steerheal.state.vector import SteeringVector
from test_train import settings

import tiny

CHAT = tiny.chat()
GOOD, BAD = ("the warm sun", "kind words", "a good day"), ("cold rain", "no", "a bad night there")


def pairs(texts: tuple[str, ...]) -> list[Pair]:
    end = CHAT.end_of_turn()
    return [
        (prompt_ids(CHAT, f"say {i}"), [*text_ids(CHAT, text), end]) for i, text in enumerate(texts)
    ]


BOTH = [*pairs(GOOD), *pairs(BAD)]


def logs() -> list[float]:
    return [row.sum().item() for row in token_logprobs(CHAT, BOTH)]


def how(**changes: Any) -> HealSettings:
    return settings(**{"objective": "dpo", "barrier": "none", "held_out": 0, **changes})


def test_loss_and_weights_are_those_of_autograd() -> None:
    random = torch.Generator().manual_seed(0)
    now = (40 * torch.randn(6, generator=random, dtype=torch.float64)).requires_grad_(True)
    before = 40 * torch.randn(6, generator=random, dtype=torch.float64)
    rivals = Rivals({0: 3, 1: 4, 2: 5}, before.tolist())
    found = how(beta=0.05, preference_ce=0.7)
    gained = now - before
    margins = 0.05 * (gained[:3] - gained[3:])
    loss = -torch.nn.functional.logsigmoid(margins).mean() - 0.7 * now[:3].sum() / 11
    (slope,) = torch.autograd.grad(loss, now)
    said, weights = rivals.judged(dict(enumerate(now.tolist())), [0, 1, 2], 11, found)
    assert said == pytest.approx(loss.item())
    # A weight is that of a cross-entropy, −ln p.
    assert [weights[i] for i in range(6)] == pytest.approx((-slope).tolist())


@pytest.mark.long
def test_the_preferred_answers_gain_on_the_others_and_micro_batches_change_nothing() -> None:
    with base().entered(CHAT) as reader:
        rivals = rivals_of(reader, BOTH)
    before = logs()
    assert rivals.before == pytest.approx(before, rel=1e-5)
    found = how(epochs=6, rows=4, lr=0.01, beta=0.5, preference_ce=0.0, warmup=0)
    healed, split = (
        heal_student(CHAT, BOTH, None, found.model_copy(update={"accumulate": n}), rivals=rivals)
        for n in (1, 4)
    )
    assert healed.log.trained_on == 3
    assert healed.log.steps[0].ce == pytest.approx(math.log(2), rel=1e-4)
    assert healed.log.steps[-1].ce < healed.log.steps[0].ce
    with base().folded(healed.adapter).entered(CHAT) as reader:
        after = [row.sum().item() for row in token_logprobs(reader, BOTH)]
    gained = [a - b for a, b in zip(after, before, strict=True)]
    assert sum(gained[:3]) > sum(gained[3:])
    for name in healed.adapter.pairs:
        torch.testing.assert_close(
            split.adapter.delta(name), healed.adapter.delta(name), atol=1e-5, rtol=1e-2
        )


def test_an_answer_that_is_preferred_to_itself_pulls_nowhere() -> None:
    same = [*pairs(GOOD), *pairs(GOOD)]
    with base().entered(CHAT) as reader:
        rivals = rivals_of(reader, same)
    log = heal_student(CHAT, same, None, how(epochs=1, preference_ce=0.0), rivals=rivals).log
    assert log.steps[0].gradient == pytest.approx(0, abs=1e-6)


def test_the_other_answers_are_the_teacher_s_at_the_opposite_doses() -> None:
    push = SteeringVector({1: 9 * torch.randn(32, generator=torch.Generator().manual_seed(2))})
    said = [
        Completion(prompt=f"say {i}", text="x", tokens=(65,), dose=dose, seed=i, ended=False)
        for i, dose in enumerate((1.0, 2.0, 1.0))
    ]
    teacher, short = base().steered(push, 2.0), SamplingSettings(tokens=4)
    found = opposed(CHAT, teacher, said, short, seed=0)
    assert [(item.prompt, item.dose) for item in found] == [
        ("say 0", -1.0), ("say 1", -2.0), ("say 2", -1.0),
    ]  # fmt: skip
    assert all(item.dose == 0 for item in opposed(CHAT, base(), said, short, seed=0))
    # The harvest of seed 0 draws from 0 on: the other answers have draws of their own.
    assert not {item.seed for item in found} & set(range(1_000_003))


@pytest.mark.long
def test_a_heal_by_preference_writes_its_own_other_side() -> None:
    push = SteeringVector({1: 3 * torch.randn(32, generator=torch.Generator().manual_seed(1))})
    said = [
        Completion(prompt=f"say {i}", text="x", tokens=tuple(rest), dose=1.0, seed=i, ended=True)
        for i, (_, rest) in enumerate(pairs(GOOD))
    ]
    short = SamplingSettings(tokens=4)
    found = heal(CHAT, base(), base().steered(push, 1.0), said, how(epochs=1, held_out=0.4),
                 number=0, seed=0, sampling=short)  # fmt: skip
    assert found.log.outcome == "trained" and found.log.held_out_completions == 1
    assert found.log.sampled == sum(
        len(item.tokens) for item in opposed(CHAT, base().steered(push, 1.0), said, short, seed=0)
    )
    assert all(math.isfinite(value) for value in found.log.held_out)


def test_what_needs_rivals_says_so_and_a_mask_is_refused() -> None:
    with pytest.raises(UserError, match="give `rivals` to dpo"):
        heal_student(CHAT, BOTH, None, how())
    with pytest.raises(ValueError, match="weighs whole answers"):
        HealSettings(objective="dpo", mask=0.1)
