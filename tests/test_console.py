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
    assert "fit  2.000" in line and "lr 1.0e-04" in line
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


SCAN = (
    ("band", "dose", "Δtrait [nats/token]", "Δauthority [nats]", "coherence", "KL", "front"),
    (
        ("0.45-0.55", "0.872 (×0.5)", "0.143 [0.102, 0.185]", "−0.452 [−0.925, −0.153]", "1.009",
         "0.271", "yes"),
        ("0.3-0.5", "12.5 (×2)", "0.243 [0.202, 0.285]", "-1.452 [-1.925, -1.153]", "0.709",
         "2.271", "knee"),
    ),
)  # fmt: skip


@pytest.mark.parametrize("width", [30, 60, 80, 100, 140])
def test_a_table_shows_every_word_and_number_whole_at_any_width(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    columns, rows = SCAN
    Console().table("scan", columns, rows)
    said = capsys.readouterr().out
    assert "…" not in said
    shown = set(re.split(r"[\s│┃]+", said))
    assert {word for row in (columns, *rows) for cell in row for word in cell.split()} <= shown
    assert said.count("[0.102, 0.185]") == said.count("[-1.925, -1.153]") == 1
    if "┃" in said:
        assert max(map(len, said.splitlines())) <= width


def test_a_table_that_fits_is_a_table_and_one_that_does_not_is_blocks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for width, bars in ((140, True), (40, False)):
        monkeypatch.setenv("COLUMNS", str(width))
        Console().table("scan", *SCAN)
        said = capsys.readouterr().out
        assert ("│" in said) is bars
    assert "\n  coherence            1.009\n" in said


def test_cells_stand_beside_each_other_where_there_is_room_and_below_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for width, lines in (("60", 1), ("40", 0)):
        monkeypatch.setenv("COLUMNS", width)
        Console().side_by_side([["one\x1b", "[b]two"]], ["left", "right"])
        said = capsys.readouterr().out
        assert "\x1b" not in said and "[b]two" in said
        assert sum("left" in line and "right" in line for line in said.splitlines()) == lines
        assert sum("one" in line and "two" in line for line in said.splitlines()) == lines


def test_what_grows_is_drawn_where_somebody_watches_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Console().growing(["left", "right"]) as grown:
        grown(["a", "b"])
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with Console().growing(["left", "right"]) as grown:
        grown(["a", "b"])
        assert "left" in capsys.readouterr().out
    assert capsys.readouterr().out.endswith("\x1b[2K")  # every line of it is erased
