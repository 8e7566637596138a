"""The reference of a heal: the last good student, by its coherence."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from steerheal.heal.round import heal
from steerheal.heal.train import Healed
from steerheal.pipeline.round import Position
from steerheal.records import Completion
from steerheal.state.values import Plain, State, base
from test_loop import start
from test_state import adapter
from test_train import factors, pairs_of, settings

import tiny


def after(rounds: int) -> State:
    return Plain(system=f"round {rounds}")


def place(*coherence: float) -> Position:
    found = Position(Plain(), None, None)  # type: ignore[arg-type]
    for number, value in enumerate(coherence, 1):
        found = found.kept(after(number), value)
    return found


@pytest.mark.parametrize(
    ("coherence", "good"),
    [
        ((), 0),
        ((0.995,), 1),
        ((0.98,), 0),
        ((0.98, 1.0), 2),
        # Each within 1 % of the one before it, which is itself good.
        ((0.995, 0.988), 2),
        ((0.995, 0.97, 0.98), 1),
        ((math.nan, 0.5), 0),
    ],
)
def test_the_last_good_is_the_newest_that_kept_the_coherence_before_it(
    coherence: tuple[float, ...], good: int
) -> None:
    assert place(*coherence).good == (after(good) if good else base())


@pytest.mark.long
def test_a_heal_is_held_to_the_last_good_student() -> None:
    chat = tiny.chat()
    student = base().folded(adapter(chat))
    said = [
        Completion(prompt=f"say {i}", text="x", tokens=tuple(rest), dose=0, seed=i, ended=True)
        for i, (_, rest) in enumerate(pairs_of(chat)[:3])
    ]

    def healed(reference: str, good: State | None = None) -> Healed:
        changed = settings(reference=reference, epochs=2, lam=5.0)
        return heal(chat, student, student, said, changed, number=0, seed=0, good=good)

    def alike(one: Healed, other: Healed) -> bool:
        pairs = zip(factors(one).values(), factors(other).values(), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    prev, leash = healed("prev"), healed("base")
    assert alike(healed("last_good", student), prev)
    assert alike(healed("last_good"), leash) and not alike(prev, leash)
    assert alike(healed("prev", base()), prev)


@pytest.mark.slow
def test_a_run_records_what_its_heals_are_held_to(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "read_steered": False,
        "check": {"doses": ()},
        "heal": {"reference": "last_good"},
    }
    first, second = start(tmp_path, **changes).rounds
    assert first.healed is not None and first.held_to == "base"
    kept = first.healed.coherence >= 0.99
    assert second.held_to == ("healed round 1" if kept else "base")
