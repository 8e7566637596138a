"""What the terminal says of a heal's pace."""

import math
import re
import time

import pytest

from steerheal.console import Console
from steerheal.records import HealStep


def paces(
    seen: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """Tokens per second and seconds left after every (round, step) of 8, half a second apart."""
    clock = iter(range(len(seen)))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock) / 2)
    monkeypatch.setenv("COLUMNS", "40")
    console = Console()
    for number, step in seen:
        done = HealStep(
            step=step, epoch=0, ce=2.0, divergence=0.1, barrier=0.0, lr=1e-4, gradient=1.0,
            tokens=500, pressure=0.25,
        )  # fmt: skip
        console.heal_step(number, done, 8)
    lines = capsys.readouterr().err.splitlines()
    assert all("pressure  0.25" in line for line in lines)
    return [re.sub(r"\s+", " ", line.rpartition("lr 1.0e-04 · ")[2]) for line in lines]


def test_a_heal_without_a_barrier_has_one_short_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    unknown = math.nan
    done = HealStep(
        step=0, epoch=0, ce=2.0, divergence=unknown, barrier=unknown, lr=1e-4, gradient=1.0,
        tokens=500, pressure=unknown,
    )  # fmt: skip
    Console().heal_step(0, done, 8)
    (line,) = capsys.readouterr().err.splitlines()
    assert "CE  2.000" in line and "lr 1.0e-04" in line
    assert "nan" not in line


def test_the_pace_is_that_of_the_steps_that_were_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = paces([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)], monkeypatch, capsys)
    thousand = [" 1000 tokens/s · 3 s left", " 1000 tokens/s · 2 s left"]
    assert found == ["…", *thousand, "…", thousand[0]]


def test_a_heal_that_goes_on_after_a_break_has_its_own_clock(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert paces([(0, 5), (0, 6)], monkeypatch, capsys) == ["…", " 1000 tokens/s · 0 s left"]
