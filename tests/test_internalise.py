"""A healed student's own shift against the vector: what a bias on the blocks would do, exactly."""

import math

import pytest
import torch

from steerheal.state.values import base
from steerheal.state.vector import SteeringVector
from steerheal.steer.internalise import internalised

import tiny

CONTEXTS = ("How was your day?", "Tell me of bread.", "Why is the sky blue?")


def vector(layer: int, seed: int = 0) -> SteeringVector:
    size = tiny.chat().net.config.hidden_size
    made = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return SteeringVector({layer: made})


def test_a_student_that_does_the_vector_at_half_dose_has_internalised_half_of_it() -> None:
    chat, pushed = tiny.chat(), vector(1)

    half = base().steered(pushed, 0.5)
    found = internalised(chat, base(), half, pushed, contexts=CONTEXTS, neutral="Be plain.")
    assert found.contexts == 3
    assert found.cosine[1] == pytest.approx(1, abs=1e-4)
    assert found.share[1] == pytest.approx(0.5, abs=1e-4)
    assert found.mean_share == found.share[1]


def test_another_direction_is_not_the_vector() -> None:
    chat, pushed, other = tiny.chat(), vector(1), vector(1, seed=1)

    away = base().steered(other, 1.0)
    found = internalised(chat, base(), away, pushed, contexts=CONTEXTS, neutral="Be plain.")
    a, b = other.layers[1], pushed.layers[1]
    assert found.cosine[1] == pytest.approx((a @ b / a.norm() / b.norm()).item(), abs=1e-4)
    assert abs(found.cosine[1]) < 0.9


def test_a_student_that_did_not_move_has_no_direction() -> None:
    chat = tiny.chat()
    found = internalised(chat, base(), base(), vector(1), contexts=CONTEXTS, neutral="Be plain.")
    assert math.isnan(found.cosine[1])
    assert found.share[1] == 0
