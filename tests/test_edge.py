"""A signal at any moment ends the process in a line, a code, and a record that says so."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from steerheal.store import read_run
from test_cli import OPTIONS

import tiny

pytestmark = pytest.mark.slow

SOURCE = Path(__file__).parents[1] / "src"
EDGE = """
import dataclasses, functools, importlib, os, signal, sys
from steerheal import __main__ as edge
number, moment = getattr(signal, sys.argv[1]), sys.argv[2]
sys.argv[1:] = sys.argv[3:]

def strike(*_, **__):
    os.kill(os.getpid(), number)

def before(name, attribute):
    module = importlib.import_module(name)
    real = getattr(module, attribute)
    setattr(module, attribute, lambda *a, **k: (strike(), real(*a, **k))[1])

if moment == "imports":
    before("importlib", "import_module")
elif moment == "parsing":
    before("steerheal.cli", "parse")
elif moment == "running":
    stages = importlib.import_module("steerheal.pipeline.stages")
    real = stages.VECTOR.function
    strikes = functools.wraps(real)(lambda *a, **k: (strike(), real(*a, **k))[1])
    stages.VECTOR = dataclasses.replace(stages.VECTOR, function=strikes)
elif moment == "loading":
    before("steerheal.pipeline.run", "load")
try:
    edge.main()
finally:
    if moment == "ending":
        strike()
"""


def struck(
    name: str, moment: str, *line: str, ignored: bool = False
) -> subprocess.CompletedProcess[str]:
    """A command that a signal meets at a moment."""
    number = getattr(signal, name)
    handler = signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
    if name == "SIGINT" and not ignored:
        signal.signal(number, signal.default_int_handler)
    try:
        return subprocess.run(
            [sys.executable, "-c", EDGE, name, moment, *line],
            capture_output=True, text=True, timeout=300, check=False,
            env=os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    finally:
        signal.signal(number, handler)


@pytest.mark.parametrize("moment", ["imports", "parsing", "ending"])
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_before_and_after_the_work_is_one_line_and_its_code(
    name: str, code: int, moment: str
) -> None:
    done = struck(name, moment, "personas", "love")
    assert done.returncode == code
    assert done.stderr == "error: interrupted\n"


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_a_signal_that_the_starter_has_it_ignore_stays_ignored(name: str) -> None:
    done = struck(name, "parsing", "personas", "love", ignored=True)
    assert done.returncode == 0 and "love:" in done.stdout


FORKS = """
import importlib, json, os, signal, sys
importlib.import_module("steerheal.pipeline.run")
edge, codes = sys.argv[1], []
for home, *case in json.loads(sys.argv[2]):
    if (child := os.fork()) == 0:
        os.dup2(os.open(f"{home}/said", os.O_CREAT | os.O_WRONLY), 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ["", *case]
        try:
            exec(edge, {"__name__": "forked"})
        except SystemExit as stop:
            os._exit(stop.code)
        os._exit(0)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(codes))
"""
"""The same, from one process in which everything is imported."""
RUNNING = (("SIGINT", "running"), ("SIGTERM", "running"), ("SIGTERM", "loading"))


def options(model: Path) -> list[str]:
    return [part.format(model=model).replace("--device", "--model.device") for part in OPTIONS]


class Told(NamedTuple):
    """A run that was told to end."""

    runs: Path
    code: int
    said: str


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Told]:
    model = tiny.saved(tmp_path_factory.mktemp("model"))
    homes = [tmp_path_factory.mktemp("home") for _ in RUNNING]
    cases = [
        [str(home), name, moment, "run", "love", "--runs", str(home / "runs"), *options(model)]
        for home, (name, moment) in zip(homes, RUNNING, strict=True)
    ]
    done = subprocess.run(
        [sys.executable, "-c", FORKS, EDGE, json.dumps(cases)],
        capture_output=True, text=True, timeout=300, check=True,
        env=os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    codes = json.loads(done.stdout.splitlines()[-1])
    return {
        (name, moment): Told(home / "runs", code, (home / "said").read_text())
        for home, code, (name, moment) in zip(homes, codes, RUNNING, strict=True)
    }


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_run_that_is_told_to_end_says_so_in_its_record(
    told: dict[tuple[str, str], Told], name: str, code: int
) -> None:
    runs, ended, said = told[name, "running"]
    assert ended == code, said[-2000:]
    assert "Traceback" not in said
    assert f"steerheal run --resume {runs / 'love'}" in said
    record = read_run(runs / "love")
    assert record.status == "interrupted"
    assert record.error == {
        "SIGINT": "interrupted by the user", "SIGTERM": "interrupted by SIGTERM"
    }[name]  # fmt: skip
    left = [path.name for path in runs.rglob(".*") if path.name != ".stages"]
    assert left == []


def test_a_run_that_is_told_to_end_before_its_first_record_leaves_nothing(
    told: dict[tuple[str, str], Told],
) -> None:
    runs, ended, _ = told["SIGTERM", "loading"]
    assert ended == 143
    assert not runs.exists()
