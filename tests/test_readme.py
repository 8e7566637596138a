"""The README's blocks run as written, and every example file parses."""

import re
import shlex
from pathlib import Path

import pytest

from steerheal.cli import main
from steerheal.config import resolve
from steerheal.config.comparing import chosen_arms, of_arm, presets
from steerheal.config.sweeping import points
from steerheal.personas import find

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    assert {kind for kind, _ in BLOCKS} == {"sh", "python"}
    assert len(COMMANDS) == 5


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_there_and_light_ones_run(line: str) -> None:
    program, *arguments = shlex.split(line)
    if program == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert arguments[0] in targets
        return
    try:
        main(arguments)
    except SystemExit as stop:
        assert stop.code in (None, 0)


@pytest.mark.slow
def test_the_python_block_runs_and_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = [text for kind, text in BLOCKS if kind == "python"]
    assert sum(bool(line.strip()) for line in block.splitlines()) <= 20
    exec(compile(block, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert said.count("→") == 2


def test_every_link_and_picture_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_every_example_file_parses() -> None:
    assert find(str(ROOT / "examples" / "calm.toml")).name == "calm"
    assert resolve("quick", ROOT / "examples" / "quick.toml").heal.barrier == "kl_fwd"
    config, _ = presets("quick", None)
    arms = chosen_arms(ROOT / "examples" / "arms.toml", ())
    assert len(arms) >= 20
    assert all(of_arm(config, arm).rounds >= 1 for arm in arms)
    assert len(points(ROOT / "examples" / "sweep.toml", "sweep")) == 2 * 3 * 2 * 2
    assert len(list((ROOT / "examples").rglob("*.toml"))) == 4


def test_every_module_that_the_method_names_is_there() -> None:
    method = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+\.py|[\w/]+/)`", method))
    assert len(named) >= 20
    for path in named:
        assert (ROOT / "src" / "steerheal" / path).exists() or (ROOT / path).exists(), path
