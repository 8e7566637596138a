"""Talking to a run: two states side by side, in turns, by lines on standard input."""

import io
import json
import math
from pathlib import Path

import pytest

import test_loop
from steerheal.commands.chat import ChatCommand
from steerheal.config import SamplingSettings
from steerheal.console import Console
from steerheal.errors import UserError
from steerheal.pipeline import talk as talking
from steerheal.pipeline.talk import Side, Talk
from steerheal.store import read_run

import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    test_loop.start(folder, rounds=1)
    return folder / "run"


@pytest.fixture
def talk(run: Path) -> Talk:
    sampling = SamplingSettings(tokens=12)
    made = Talk(tiny.chat(), read_run(run), run, 1, sampling, 0, Console())
    made.sides = {"left": Side("base"), "right": Side("round 1")}
    return made


def test_both_sides_answer_from_the_same_seed_and_remember(talk: Talk) -> None:
    first = talk.say("hello")
    assert [reply.state for reply in first] == ["base", "healed round 1"]
    assert first[0].kl == pytest.approx(0, abs=1e-6) and first[1].kl > 0
    assert all(math.isfinite(reply.logodds) for reply in first)
    second = talk.say("hello")
    assert {reply.seed for reply in first} == {0} and {reply.seed for reply in second} == {1}
    left = talk.sides["left"].before
    assert [role for role, _ in left] == ["user", "assistant"] * 2
    talk.afresh()
    talk.seed = 0
    again = talk.say("hello")
    assert [reply.text for reply in again] == [reply.text for reply in first]
    assert second[0].text != first[0].text  # what was said before counts


def test_at_gate_and_dose_0_every_state_is_the_base(talk: Talk) -> None:
    talk.gate = talk.dose = 0.0
    for who in ("round 1", "vector"):
        talk.choose("right", who)
        left, right = talk.say("hello")
        assert left.text == right.text and right.kl == pytest.approx(0, abs=1e-6)
    talk.dose = 3.0
    assert talk.say("hello")[1].kl > 1e-6
    talk.choose("right", "prompt")
    assert "system prompt: test" in talk.say("hello")[1].state


@pytest.mark.parametrize("who", ["", "nobody", "round 7", "round x", "base 1", "vector 0"])
def test_nobody_else_can_be_chosen(talk: Talk, who: str) -> None:
    with pytest.raises(UserError):
        talk.choose("left", who)
    assert talk.sides["left"].who == "base"


def test_lines_on_standard_input_are_messages_and_commands(
    talk: Talk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(talking, "begun", lambda *_, **__: talk)
    file = tmp_path / "said.json"
    lines = ["hello \x1b[31m", "/gate 0.5", "/dose x", "/seed 3", "/nothing", "hi", f"/save {file}"]
    lines += [f"/save {file}", "/help", "/quit", "never read"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    ChatCommand(run=talk.folder).do(Console(), lambda: None)
    said = capsys.readouterr()
    assert said.out.count("persona log-odds") == 4 and "KL to base" in said.out
    assert "gate 0.5" in said.out and "\x1b" not in said.out
    for message in ("/dose: given 'x'", "/nothing is no command", "exists", "/left"):
        assert message in said.err
    held = json.loads(file.read_text())
    assert held["sides"]["right"]["replies"][1]["seed"] == 3
    assert held["sides"]["right"]["replies"][1]["state"] == "healed round 1, gate 0.5"
    assert len(held["sides"]["left"]["turns"]) == 4


def test_the_end_of_the_input_ends_the_talk(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(talking, "begun", lambda *_, **__: talk)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    ChatCommand(run=talk.folder).do(Console(), lambda: None)
    assert "persona" not in capsys.readouterr().out
