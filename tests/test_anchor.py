"""The anchor off the trait: what it leaves alone, what it holds, and what it refuses."""

from dataclasses import replace

import pytest
import torch

from steerheal.errors import UserError
from steerheal.heal.batches import Data
from steerheal.heal.train import Healed, heal_student
from steerheal.models.chat import prompt_ids, text_ids
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states, kl_between
from steerheal.state.values import base
from test_train import assert_equal, factors, healed, pairs_of, settings

import tiny

PLAIN = settings(barrier="none", epochs=6)


def unrelated(chat: ChatModel) -> Data:
    """Other prompts and other text, with the base's states."""
    said = ("the bus goes at nine", "two eggs and some flour", "blue paint dries slowly")
    pairs = [
        (prompt_ids(chat, f"tell me of {i}"), text_ids(chat, text)) for i, text in enumerate(said)
    ]
    return Data(pairs, continuation_states(chat, pairs))


def drift(chat: ChatModel, done: Healed, data: Data) -> float:
    """KL(base‖healed) on text, mean over its positions."""
    with base().folded(done.adapter).entered(chat) as reader:
        moved = continuation_states(reader, data.pairs)
    assert data.reference is not None
    return kl_between(chat, torch.cat(list(data.reference)), torch.cat(moved)).mean().item()


@pytest.mark.long
def test_without_weight_it_is_the_heal_without_it_bit_for_bit() -> None:
    chat = tiny.chat()
    assert_equal(healed(chat, PLAIN), healed(chat, PLAIN, anchor=unrelated(chat)))


@pytest.mark.long
def test_unrelated_text_stays_and_the_fit_goes_on() -> None:
    chat = tiny.chat()
    data = unrelated(chat)
    free = healed(chat, PLAIN)
    held = healed(chat, settings(barrier="none", epochs=6, anchor=10.0), anchor=data)
    assert drift(chat, held, data) < drift(chat, free, data) / 2
    assert held.log.steps[-1].ce < held.log.steps[0].ce
    own = Data(pairs_of(chat), continuation_states(chat, pairs_of(chat)))
    # Text that is fitted moves by more than a half of what it did: it is no gate.
    ratio = drift(chat, held, own) / drift(chat, free, own)
    assert ratio > drift(chat, held, data) / drift(chat, free, data)


@pytest.mark.long
def test_a_step_records_its_divergence_there() -> None:
    chat = tiny.chat()
    done = healed(chat, settings(barrier="none", anchor=1.0, anchor_rows=2), anchor=unrelated(chat))
    read = [step.anchor for step in done.log.steps]
    assert read[0] == pytest.approx(0, abs=1e-6) and read[-1] > 0
    assert all(step.anchor != step.anchor for step in healed(chat, PLAIN).log.steps)


def test_at_the_base_it_has_no_slope() -> None:
    chat = tiny.chat()
    data = unrelated(chat)
    one = settings(barrier="none", epochs=1, rows=8, anchor=3.0, anchor_rows=3, clip=1e9)
    both = healed(chat, one, anchor=data).log.steps[0].gradient
    alone = healed(chat, one.model_copy(update={"anchor": 0.0})).log.steps[0].gradient
    # At the start the student is the base, where the divergence has no slope.
    assert both == pytest.approx(alone, rel=1e-4)


def test_an_anchor_without_text_is_refused() -> None:
    chat = tiny.chat()
    data = unrelated(chat)
    asked = settings(barrier="none", anchor=1.0)
    for given in (None, replace(data, reference=None)):
        with pytest.raises(UserError, match="unrelated text"):
            heal_student(chat, pairs_of(chat), None, asked, anchor=given)


@pytest.mark.long
def test_it_moves_the_factors() -> None:
    chat = tiny.chat()
    free, held = (
        factors(healed(chat, settings(barrier="none", epochs=6, anchor=w), anchor=unrelated(chat)))
        for w in (0.0, 5.0)
    )
    assert any(not torch.equal(free[name], held[name]) for name in free)
