"""Several processes as one run: the same record, what a dead one leaves, and one shared model."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from steerheal import ranks
from steerheal.commands.run import RunCommand
from steerheal.config import HealSettings, ModelSettings, RunConfig, SamplingSettings
from steerheal.console import Console
from steerheal.errors import UserError
from steerheal.extras import EXTRAS
from steerheal.heal.adapter import training
from steerheal.heal.batches import Data
from steerheal.heal.train import heal_student, training_pairs
from steerheal.models.batch import out_of_memory
from steerheal.models.generate import Draw, generate
from steerheal.models.load import load
from steerheal.models.model import ChatModel
from steerheal.models.quantise import refuse_merging
from steerheal.models.score import continuation_states
from steerheal.pipeline import run as pipeline
from steerheal.pipeline.surroundings import size_of
from steerheal.state.fold import Gated, folded
from steerheal.steer.methods.s_space import writable
from steerheal.store import read_run
from test_cli import failing
from test_loop import start, timeless

import tiny

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
import test_loop, test_ranks
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
    test_ranks.aside(Path(sys.argv[2]))
    test_ranks.together(Path(sys.argv[2]))
"""
SAID = SamplingSettings(tokens=6)
ASIDE = HealSettings(
    barrier="kl_fwd", barrier_text="unrelated", aggregate="max", tau=1e-4, lam=2.0, anchor=0.5,
    anchor_rows=2, epochs=3, rows=2, rank=2, lr=5e-3, held_out=0.0,
)  # fmt: skip
HEAL = HealSettings(barrier="kl_rev", epochs=2, rows=2, rank=2, accumulate=2, held_out=0.0)


def test_a_process_alone_is_the_whole_run() -> None:
    assert (ranks.world(), ranks.rank(), ranks.leads()) == (1, 0, True)
    assert ranks.share_of([3, 1, 2]) == [3, 1, 2]
    assert ranks.merged({2: "b", 1: "a"}) == {1: "a", 2: "b"}
    assert ranks.told("x") == "x"


def test_every_index_is_one_process_s(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for number in range(3):
        monkeypatch.setattr(ranks, "_joined", {"rank": number, "world": 3, "alike": False})
        shares.append(ranks.share_of(range(8)))
    assert sorted(index for share in shares for index in share) == list(range(8))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_processes_that_share_a_model_share_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_joined", {"rank": 1, "world": 2, "alike": True})
    assert (ranks.world(), ranks.processes(), ranks.leads()) == (1, 2, False)
    assert ranks.share_of(range(3)) == [0, 1, 2]
    # One of them cannot leave a forward that the others are in.
    assert not out_of_memory(torch.OutOfMemoryError("out of memory"))


def test_a_plan_is_made_by_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it tries out is read by all of them together."""
    made: list[int] = []
    monkeypatch.setattr(ranks, "_joined", {"rank": 1, "world": 2, "alike": False})
    monkeypatch.setattr(pipeline, "plan", lambda *_, **__: made.append(ranks.rank()))
    RunCommand.of(["love", "--plan"])._foretold(Console())
    assert made == [1]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["run", "love", "--model.shard"], "there is one. Start `steerheal run` with torchrun"),
        (["compare", "love", "--model.shard"], "which other commands and --workers do not take"),
        (["run", "love", "--model.shard", "--model.quantize", "nf4"], "leave one of them out"),
        (["run", "love", "--model.shard", "--heal.adapter", "pissa"], "which model.shard shares"),
    ],
)
def test_a_model_is_shared_by_the_processes_of_a_run_alone(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in " ".join(failing(argv, capsys).split())


def test_vllm_is_refused_with_a_shared_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(EXTRAS, "vllm", ("json",))
    config = RunConfig.model_validate(
        {"model": {"name": "some/model", "shard": True}, "sampling": {"engine": "vllm"}}
    )
    with pytest.raises(UserError, match="writes in one process, and the run has 2"):
        pipeline.refuse_engine(config)


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


def made(chat: ChatModel) -> dict[str, Tensor]:
    """What a model writes and learns, and a direction that is read off its weights."""
    draws = [Draw(prompt, seed=i) for i, prompt in enumerate(tiny.TEST)]
    pairs = training_pairs(chat, generate(chat, draws, SAID))
    states = continuation_states(chat, pairs)
    adapter = heal_student(chat, pairs, states, HEAL).adapter
    with folded(chat, [Gated(adapter)]):
        healed = torch.cat(continuation_states(chat, pairs))
    return {
        "text": torch.tensor([token for _, rest in pairs for token in rest]),
        "states": torch.cat(states), "healed": healed, "writes": writable(chat, 1, 0.5),
        **{name: pair.up @ pair.down for name, pair in adapter.pairs.items()},
    }  # fmt: skip


def held_aside() -> dict[str, Tensor]:
    """What is learned beside a barrier on other text, and what the barrier was at every step."""
    chat = tiny.chat()
    draws = [Draw(prompt, seed=i) for i, prompt in enumerate(tiny.TEST)]
    pairs = training_pairs(chat, generate(chat, draws, SAID))
    other = [(prefix, rest[::-1]) for prefix, rest in pairs]
    data = Data(other, continuation_states(chat, other))
    adapter, log = heal_student(chat, pairs, None, ASIDE, anchor=data)
    return {
        "barrier": torch.tensor([step.barrier for step in log.steps]),
        **{name: pair.up @ pair.down for name, pair in adapter.pairs.items()},
    }


def aside(runs: Path) -> None:
    """In one of several processes: the same, left in a file."""
    save_file(held_aside(), runs.with_name(f"aside-{ranks.rank()}"))


def together(runs: Path) -> None:
    """In one of several processes: the same by a model that they share, left in a file."""
    folder = ranks.told(str(tiny.saved(runs.parent)) if ranks.leads() else "")
    chat = load(ModelSettings(name=folder, device="cpu", shard=True))
    assert chat.sharded and ranks.world() == 1 and ranks.processes() == 2
    found = made(chat)
    weights = [cast(DTensor, weight).to_local() for weight in chat.blocks.parameters()]
    assert not any(weight.requires_grad for weight in weights)
    found["held"] = torch.tensor(sum(map(torch.numel, weights)))
    about = {"fingerprint": chat.fingerprint, "size": json.dumps(size_of(chat))}
    save_file(found, runs.with_name(f"shared-{ranks.rank()}"), about)
    with pytest.raises(UserError, match="weights that several processes share"):
        refuse_merging(chat, "A history")
    pissa = HEAL.model_copy(update={"adapter": "pissa"})
    with pytest.raises(UserError, match="holds sharded"), training(chat, pissa, seed=0):
        pass


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs of two processes; one died at first, and the same command went on."""
    runs = tmp_path_factory.mktemp("ranks") / "several"
    codes = launched(runs, dies_at=2)
    assert codes[1] == -9 and codes[0] != 0
    assert read_run(runs / "run").status == "running"
    assert launched(runs) == [0, 0]
    return runs


@pytest.mark.slow
@pytest.mark.rare
def test_a_model_that_two_processes_share_is_the_whole_one(several: Path) -> None:
    chat = load(ModelSettings(name=str(several.with_name("tiny-llama")), device="cpu"))
    whole, size = made(chat), size_of(chat)
    blocks = sum(weight.numel() for weight in chat.blocks.parameters())
    for number in range(2):
        with safe_open(several.with_name(f"shared-{number}"), "pt") as file:
            about = file.metadata()
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert about["fingerprint"] == chat.fingerprint
        assert found.pop("held") == blocks / 2
        away = {"elsewhere": blocks / 2, "gathered": blocks / 4}
        assert json.loads(about["size"]) == list(size._replace(**away))
        assert found.keys() == whole.keys()
        for name, value in whole.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.rare
def test_two_processes_hold_unrelated_text_as_one_does(several: Path) -> None:
    found = [load_file(several.with_name(f"aside-{number}")) for number in range(2)]
    assert found[0]["barrier"][1:].min() > 0
    for name, value in held_aside().items():
        assert torch.equal(found[0][name], found[1][name]), name
        torch.testing.assert_close(found[0][name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.rare
def test_two_processes_make_one_s_record_also_when_one_died_before(
    several: Path, tmp_path: Path
) -> None:
    lone = tmp_path / "lone"
    start(lone, **CHANGES)
    marks = read_run(several / "run").stages
    assert {mark.name: mark.reused for mark in marks}["harvest"]
    once, again = timeless(lone / "run"), timeless(several / "run")
    for name in ("round-01/completions.jsonl", "round-01/vector.safetensors"):
        assert once["files"][name] == again["files"][name], name
    for record in (once["record"], again["record"]):
        del record["rounds"][0]["findings"]  # words that hold numbers
    alike(once["record"], again["record"])
