"""The even share: laws of its two variances, and of doses of a tiny model."""

import math

import pytest
import torch

from steerheal.config import SamplingSettings
from steerheal.measure.even import UNWRITTEN, even_shares, variances
from steerheal.measure.spill import base_texts
from steerheal.state.values import base
from steerheal.state.vector import SteeringVector

import tiny
from tiny import SIZES


def logs(count: int) -> list[torch.Tensor]:
    return [torch.randn(4, 9, dtype=torch.float64).log_softmax(-1) for _ in range(count)]


def variance(log_p: torch.Tensor, what: torch.Tensor) -> torch.Tensor:
    p = log_p.exp()
    centred = what - (p * what).sum(-1, keepdim=True)
    return (p * centred.square()).sum(-1)


def test_the_two_parts_make_up_the_mean_variance_of_both_signs() -> None:
    log_p, up, down = logs(3)
    even, odd = variances(log_p, up, down).T
    whole = (variance(log_p, up - log_p) + variance(log_p, down - log_p)) / 2
    torch.testing.assert_close(even + odd, whole)


def test_what_turns_with_the_sign_is_odd_and_what_stays_is_even() -> None:
    log_p, push, _ = logs(3)
    turning = variances(log_p, log_p + push, log_p - push)
    assert turning[:, 0].abs().max() < 1e-12 and (turning[:, 1] > 0).all()
    staying = variances(log_p, log_p + push, log_p + push)
    assert staying[:, 1].abs().max() < 1e-12 and (staying[:, 0] > 0).all()


def test_a_token_that_the_base_cannot_say_has_no_part() -> None:
    log_p, up, down = logs(3)
    masked = torch.cat([log_p, torch.full((4, 1), -math.inf, dtype=torch.float64)], dim=-1)
    wild = [torch.cat([side, torch.full((4, 1), -3.0)], dim=-1) for side in (up, down)]
    torch.testing.assert_close(variances(masked, *wild), variances(log_p, up, down))


def test_small_doses_are_odd_and_the_share_grows_and_is_the_opposite_vector_s_too() -> None:
    chat = tiny.chat()
    texts = base_texts(chat, ("how are you", "what now"), SamplingSettings(tokens=5), seed=1)
    push = SteeringVector({1: torch.randn(SIZES["hidden_size"])})
    steered = base().steered(push, 1.0)
    small, large = even_shares(chat, base(), steered, [0.003, 3.0], texts)
    assert small.value < 1e-3 < large.value < 1
    assert large.low <= large.value <= large.high
    (other,) = even_shares(chat, base(), base().steered(push * -1.0, 1.0), [3.0], texts)
    assert other.value == pytest.approx(large.value, rel=1e-5)


def test_without_text_it_is_unknown() -> None:
    (found,) = even_shares(tiny.chat(), base(), base(), [1.0], [])
    assert math.isnan(found.value) and found.reason == UNWRITTEN
