"""Several processes as one run: the same record, and what a process that dies leaves."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from steerheal import ranks
from steerheal.commands.run import RunCommand
from steerheal.console import Console
from steerheal.pipeline import run as pipeline
from steerheal.store import read_run
from test_cli import failing
from test_loop import start, timeless

CHANGES: dict[str, Any] = {
    "rounds": 1, "read_prompted": False, "read_steered": False, "check": {"doses": ()},
    "sampling": {"tokens": 6}, "dose": {"batches": 1, "walks": 1},
    "measure": {"statements": 2, "prompts": 2, "long_prompts": 0},
    "heal": {"barrier": "kl_rev", "epochs": 2, "rows": 4, "rank": 2},
}  # fmt: skip
PROGRAM = """
import json, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import test_loop
from steerheal import ranks
from steerheal.heal.trainer import Trainer

step, steps = Trainer._step, []
def stepping(*given):
    steps.append(1)
    if len(steps) == int(sys.argv[4]) and ranks.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*given)
Trainer._step = stepping
with ranks.together():
    test_loop.start(Path(sys.argv[2]), **json.loads(sys.argv[3]))
"""


def test_a_process_alone_is_the_whole_run() -> None:
    assert (ranks.world(), ranks.rank(), ranks.leads()) == (1, 0, True)
    assert ranks.share_of([3, 1, 2]) == [3, 1, 2]
    assert ranks.merged({2: "b", 1: "a"}) == {1: "a", 2: "b"}
    assert ranks.told("x") == "x"


def test_every_index_is_one_process_s(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for number in range(3):
        monkeypatch.setattr(ranks, "_joined", {"rank": number, "world": 3})
        shares.append(ranks.share_of(range(8)))
    assert sorted(index for share in shares for index in share) == list(range(8))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_plan_is_made_by_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it tries out is read by all of them together."""
    made: list[int] = []
    monkeypatch.setattr(ranks, "_joined", {"rank": 1, "world": 2})
    monkeypatch.setattr(pipeline, "plan", lambda *_, **__: made.append(ranks.rank()))
    RunCommand.of(["love", "--plan"])._foretold(Console())
    assert made == [1]


def test_a_command_that_shares_nothing_out_refuses_a_launcher(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = failing(["personas", "love"], capsys)
    assert "2 processes were launched" in said and "without the launcher" in said


def launched(runs: Path, dies_at: int = 0) -> list[int]:
    """Exit codes of two processes that make one run; the second one may die in a step of its."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = door.getsockname()[1]
    given = [str(Path(__file__).parent), str(runs), json.dumps(CHANGES), str(dies_at)]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *given],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank),
                                       "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]  # fmt: skip
    return [process.wait(timeout=120) for process in processes]


def alike(one: Any, other: Any) -> None:
    """The same to rounding: gradients and batches are summed in another order."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one.keys() - {"stages"}:
            alike(one[name], other[name])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            alike(a, b)
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=1e-3, rel=1e-3, nan_ok=True)
    else:
        assert one == other


@pytest.mark.slow
def test_two_processes_make_one_s_record_also_when_one_died_before(tmp_path: Path) -> None:
    lone, several = tmp_path / "lone", tmp_path / "several"
    start(lone, **CHANGES)
    codes = launched(several, dies_at=2)
    assert codes[1] == -9 and codes[0] != 0
    assert read_run(several / "run").status == "running"
    assert launched(several) == [0, 0]
    marks = read_run(several / "run").stages
    assert {mark.name: mark.reused for mark in marks}["harvest"]
    once, again = timeless(lone / "run"), timeless(several / "run")
    for name in ("round-01/completions.jsonl", "round-01/vector.safetensors"):
        assert once["files"][name] == again["files"][name], name
    for record in (once["record"], again["record"]):
        del record["rounds"][0]["findings"]  # words that hold numbers
    alike(once["record"], again["record"])
