"""A dose is set where it is read and nowhere else: no reader sees what another left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from steerheal.config import MeasureSettings, SamplingSettings
from steerheal.measure import coherence, evaluate, forced_choice, free, instruments, likelihood
from steerheal.measure import vignettes as sets
from steerheal.models.generate import Draw, generate
from steerheal.models.hooks import Dosed, adding
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states
from steerheal.records import Scores
from test_forced_choice import short

import tiny

SETTINGS = MeasureSettings(
    instrument="likelihood", per_foundation=1, prompts=2, tokens=4, long_prompts=2,
    long_tokens=4, json_prompts=2,
)  # fmt: skip
VECTOR = {1: torch.randn(32, generator=torch.Generator().manual_seed(3))}


def read(chat: ChatModel, dose: float) -> Scores:
    @contextmanager
    def enter() -> Iterator[Dosed]:
        with adding(chat, VECTOR, dose) as dosed:
            yield dosed

    return evaluate.evaluate(
        chat, "steered", enter, tiny.persona(), SETTINGS,
        sampling=SamplingSettings(tokens=4), seed=0, dose=dose,
    )  # fmt: skip


@pytest.mark.parametrize("reader", [(instruments, "sweep"), (coherence, "sweep"), (free, "sweep")])
def test_a_reader_that_leaves_a_dose_behind_changes_no_other_reading(
    reader: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, (module, name) = tiny.chat(), reader
    tidy, real = read(chat, 0.7), getattr(module, name)

    def untidy(*args: Any, **kwargs: Any) -> Any:
        found = real(*args, **kwargs)
        handles = [item for item in (*args, *kwargs.values()) if isinstance(item, Dosed)]
        for handle in handles:
            handle.set(9.0)
        assert handles
        return found

    monkeypatch.setattr(module, name, untidy)
    assert read(chat, 0.7) == tidy
    assert read(chat, 0.0) != tidy


READERS: dict[str, Callable[[ChatModel, Dosed], object]] = {
    "likelihood": lambda chat, handle: likelihood.sweep(
        chat, sets.load("everyday")[:3], (0.0, 2.0), handle
    ),
    "forced_choice": lambda chat, handle: forced_choice.sweep(
        chat, sets.load("everyday")[:3], short(), (0.0, 2.0), handle, think=2
    ),
    "canary": lambda chat, handle: coherence.sweep(chat, ["It is."], (0.0, 2.0), handle),
    "sampling": lambda chat, handle: generate(
        chat, [Draw("a", 2.0), Draw("b")], SamplingSettings(tokens=3), dosed=handle
    ),
    "states": lambda chat, handle: continuation_states(
        chat, [([65, 66], [67])] * 2, doses=(1.0, 2.0), handle=handle
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_gives_the_dose_back_that_it_found(name: str) -> None:
    chat = tiny.chat()
    with adding(chat, VECTOR, 0.3) as handle:
        READERS[name](chat, handle)
        assert handle.dose == 0.3


def test_a_dose_comes_back_when_the_reading_fails() -> None:
    handle = Dosed(0.5)
    with pytest.raises(RuntimeError), handle.at(torch.tensor([1.0, 2.0])):
        assert isinstance(handle.dose, torch.Tensor)
        raise RuntimeError
    assert handle.dose == 0.5
