"""The mask on the fit: which tokens it leaves out, its control, and what a heal makes of it."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from steerheal.errors import UserError
from steerheal.heal.mask import fitted
from steerheal.heal.round import heal
from steerheal.heal.train import Healed, heal_student
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states
from steerheal.records import Completion
from steerheal.state.values import base
from test_train import assert_equal, healed, pairs_of, settings

import tiny

PLAIN = settings(barrier="none")
MASKED: dict[str, Any] = {"barrier": "none", "mask": 0.3}


def tokens(chat: ChatModel, seed: int = 0, **changes: Any) -> list[Tensor]:
    return fitted(chat, pairs_of(chat), settings(**MASKED | changes), seed)


def masked(chat: ChatModel, kept: list[Tensor], **changes: Any) -> Healed:
    return heal_student(chat, pairs_of(chat), None, settings(**MASKED | changes), fitted=kept)


def test_at_0_it_is_the_heal_without_it_bit_for_bit() -> None:
    chat = tiny.chat()
    assert_equal(healed(chat, PLAIN), healed(chat, PLAIN, fitted=tokens(chat)))
    assert healed(chat, PLAIN).log.masked == 0


def test_exactly_the_implausible_targets_are_left_out() -> None:
    chat, pairs = tiny.chat(), pairs_of(tiny.chat())
    states = continuation_states(chat, pairs)
    for row, own, (_, rest) in zip(tokens(chat), states, pairs, strict=True):
        with torch.no_grad():
            p = chat.logits(own).softmax(-1)
        assert row.tolist() == [bool(p[t, y] >= 0.3 * p[t].max()) for t, y in enumerate(rest)]


def test_the_control_leaves_out_as_many_of_every_completion_by_its_seed() -> None:
    chat = tiny.chat()
    rule, random = tokens(chat), tokens(chat, mask_control=True)
    assert [row.sum() for row in rule] == [row.sum() for row in random]
    assert any(not torch.equal(a, b) for a, b in zip(rule, random, strict=True))
    again, other = tokens(chat, mask_control=True), tokens(chat, 1, mask_control=True)
    assert all(torch.equal(a, b) for a, b in zip(random, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(random, other, strict=True))


def test_a_step_s_fit_and_gradient_are_those_of_the_tokens_that_are_left() -> None:
    chat, kept = tiny.chat(), tokens(tiny.chat())
    share: dict[str, Any] = {"held_out": 0.0, "rows": len(kept), "accumulate": 1, "epochs": 1}
    done = masked(chat, kept, **share)
    states = continuation_states(chat, pairs_of(chat))
    with torch.no_grad():
        logs = [chat.logits(own).log_softmax(-1) for own in states]
    left = [
        -log[t, y].item()
        for log, row, (_, rest) in zip(logs, kept, pairs_of(chat), strict=True)
        for t, y in enumerate(rest)
        if row[t]
    ]
    assert done.log.steps[0].ce == pytest.approx(sum(left) / len(left), rel=1e-4)
    total = sum(map(len, kept))
    assert done.log.masked == pytest.approx(1 - len(left) / total)
    nothing = masked(chat, [torch.zeros_like(row) for row in kept], **share)
    assert nothing.log.masked == 1 and nothing.log.steps[0].gradient == 0


def test_held_out_text_is_read_where_it_is_fitted() -> None:
    chat, kept = tiny.chat(), tokens(tiny.chat())
    assert math.isfinite(masked(chat, kept, held_out=0.5).log.held_out[-1])
    none = masked(chat, [torch.zeros_like(row) for row in kept], held_out=0.5).log
    assert math.isnan(none.held_out[-1]) and "masked" in none.held_out_reason


def test_a_mask_without_its_tokens_and_a_control_without_a_mask_are_refused() -> None:
    chat = tiny.chat()
    with pytest.raises(UserError, match="mask needs the tokens"):
        heal_student(chat, pairs_of(chat), None, settings(**MASKED))
    with pytest.raises(ValueError, match="give mask above 0"):
        settings(mask_control=True)


def test_a_run_s_heal_asks_the_base() -> None:
    chat = tiny.chat()
    said = [
        Completion(prompt=f"say {i}", text="x", tokens=tuple(rest), dose=0, seed=i, ended=True)
        for i, (_, rest) in enumerate(pairs_of(chat))
    ]
    share = {"held_out": 0.0, "epochs": 1}
    done = heal(chat, base(), base(), said, settings(**MASKED | share), number=0, seed=0)
    assert done.log.masked == masked(chat, tokens(chat), **share).log.masked > 0
