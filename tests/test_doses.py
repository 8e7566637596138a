"""A dose is set where it is read and nowhere else: no reader sees what another left."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from steerheal.config import SamplingSettings
from steerheal.measure import coherence, forced_choice, likelihood
from steerheal.measure import vignettes as sets
from steerheal.models.generate import Draw, generate
from steerheal.models.hooks import Dosed
from steerheal.models.model import ChatModel
from steerheal.models.rows import Line
from steerheal.models.score import continuation_states
from steerheal.state.values import entered
from test_forced_choice import short
from test_state import adapter

import tiny

VECTOR = {1: torch.randn(32, generator=torch.Generator().manual_seed(3))}
PAIRS = [(Line.of([65, 66], state=state), [67]) for state in (0, 1)]
READERS: dict[str, Callable[[ChatModel], Any]] = {
    "likelihood": lambda reader: likelihood.sweep(reader, sets.load("everyday")[:3]),
    "forced_choice": lambda reader: forced_choice.sweep(
        reader, sets.load("everyday")[:3], short(), think=2
    ),
    "canary": lambda reader: coherence.sweep(reader, ["It is."]),
    "sampling": lambda reader: generate(
        reader, [Draw("a", 1), Draw("b")], SamplingSettings(tokens=3)
    ),
    "states": lambda reader: continuation_states(reader, PAIRS),
}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_leaves_every_dose_and_gate_as_it_was(name: str) -> None:
    chat = tiny.chat()
    one, other = tiny.steered(VECTOR, (0.0, 2.0))
    with entered(chat, [one.folded(adapter(chat), 0.5), other]) as reader:
        handles = [*reader.pushes, reader.branches]
        before = [handle and handle.dose for handle in handles]
        READERS[name](reader)
        assert [handle and handle.dose for handle in handles] == before == [0.0, 0.0]


@pytest.mark.parametrize("name", READERS)
def test_what_was_read_before_changes_no_reading(name: str) -> None:
    chat = tiny.chat()
    states = tiny.steered(VECTOR, (0.0, 2.0))
    with entered(chat, states) as reader:
        alone = READERS[name](reader)
        for other in READERS.values():
            other(reader)
        again = READERS[name](reader)
    if name == "states":
        assert all(torch.equal(a, b) for a, b in zip(alone, again, strict=True))
    else:
        assert str(again) == str(alone)  # NaN is not equal to itself


def test_a_dose_comes_back_when_the_reading_fails() -> None:
    handle = Dosed(0.5)
    with pytest.raises(RuntimeError), handle.at(torch.tensor([1.0, 2.0])):
        assert isinstance(handle.dose, torch.Tensor)
        raise RuntimeError
    assert handle.dose == 0.5
