"""Held-out trait and spill: laws, and values made by hand from whole logits."""

import math

import pytest
import torch

from steerheal.config import SamplingSettings
from steerheal.measure import free
from steerheal.measure.poles import expected_logodds
from steerheal.measure.spill import apart, base_texts, spill
from steerheal.models.chat import prompt_ids
from steerheal.models.model import ChatModel
from steerheal.state.values import base
from steerheal.state.vector import SteeringVector

import tiny
from tiny import SIZES

UP, DOWN = "you love rain", "you hate rain"
SAMPLING = SamplingSettings(tokens=6, temperature=1.0, rows=8)


def written(chat: ChatModel) -> free.Answers:
    with base().entered(chat) as reader:
        return free.answers(reader, ("how are you", "what now"), SAMPLING, seed=1)


def pushed(size: float) -> SteeringVector:
    drawn = torch.randn(SIZES["hidden_size"], generator=torch.Generator().manual_seed(3))
    return SteeringVector({1: size * drawn})


def test_equal_poles_give_nothing_and_swapped_ones_the_opposite() -> None:
    chat = tiny.chat()
    said = written(chat)
    found = expected_logodds(chat, said, [(UP, UP), (UP, DOWN), (DOWN, UP)])
    assert torch.allclose(found[:, 0], torch.zeros(2), atol=1e-6)
    assert torch.allclose(found[:, 1], -found[:, 2], atol=1e-6)
    assert (found[:, 1].abs() > 1e-4).all()


def test_the_expectation_is_that_of_whole_distributions() -> None:
    chat = tiny.chat()
    said = written(chat)
    found = expected_logodds(chat, said, [(UP, DOWN)])
    for answer, value in zip(said.completions, found[:, 0].tolist(), strict=True):
        logs = []
        for system in ("", UP, DOWN):
            start = prompt_ids(chat, answer.prompt, system=system)
            ids = torch.tensor([[*start, *answer.tokens]])
            rows = chat.net(ids).logits[0, len(start) - 1 : -1].float()
            logs.append(rows.log_softmax(-1))
        p, up, down = logs
        byhand = (p.exp() * (up - down)).sum(-1).mean().item()
        assert value == pytest.approx(byhand, abs=1e-5)


def test_an_answer_without_tokens_is_unknown() -> None:
    chat = tiny.chat()
    said = written(chat)
    nothing = said.completions[0].model_copy(update={"tokens": (), "text": ""})
    cut = free.Answers([nothing, said.completions[1]], [said.states[0][:0], said.states[1]])
    found = expected_logodds(chat, cut, [(UP, DOWN)])
    assert math.isnan(found[0, 0]) and math.isfinite(found[1, 0])


def test_the_base_spills_nothing_and_a_larger_dose_more() -> None:
    chat = tiny.chat()
    texts = base_texts(chat, ("name a tree", "count to two"), SAMPLING, seed=2)
    still = spill(chat, base(), texts)
    little, much = (spill(chat, base().steered(pushed(1.0), dose), texts) for dose in (0.5, 2.0))
    assert still == pytest.approx([0, 0], abs=1e-6)
    assert all(0 < a < b for a, b in zip(little, much, strict=True))


def test_the_divergence_is_taken_both_ways() -> None:
    chat = tiny.chat()
    (text,) = base_texts(chat, ("name a tree",), SAMPLING, seed=2)
    start = prompt_ids(chat, text.prompt)
    logs = []
    for state in (base(), base().steered(pushed(1.0), 2.0)):
        with state.entered(chat) as reader, reader.resting():
            rows = reader.net(torch.tensor([[*start, *text.tokens]])).logits
            logs.append(rows[0, len(start) - 1 : -1].float().log_softmax(-1))
    plain, steered = logs
    byhand = [
        (p.exp() * (p - q)).sum(-1).mean().item() for p, q in ((steered, plain), (plain, steered))
    ]
    ((there, back),) = apart(chat, base().steered(pushed(1.0), 2.0), [text])
    assert [there, back] == pytest.approx(byhand, rel=1e-3) and there != pytest.approx(back)
