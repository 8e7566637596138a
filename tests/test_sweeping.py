"""Sweeps: what a file stands for, what is refused, runs that share stages, workers that die."""

import importlib.util
import json
import shlex
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest

from steerheal.cli import main, parse
from steerheal.config import ModelSettings, merge
from steerheal.config.sweeping import MOST_RUNS, points
from steerheal.models import load as models
from steerheal.models.model import ChatModel
from steerheal.pipeline import kept as models_kept
from steerheal.pipeline.claims import LOCK
from steerheal.pipeline.stage_store import UNFINISHED
from steerheal.pipeline.sweeping import means_of
from steerheal.records import Reading, RunRecord
from steerheal.records.sweeping import SweepRecord, SweptRun
from steerheal.report.sweeping import across_seeds, by_headline, planned
from steerheal.store import RUN, SWEEP, read_record, read_run
from test_loop import TINY

import tiny

PERSONA = Path(__file__).parents[1] / "examples" / "calm.toml"


def lines(settings: dict[str, Any], path: str = "") -> Iterator[str]:
    """Settings as TOML: its arrays, texts and numbers are JSON's."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from lines(value, f"{path}{name}.")
        else:
            yield f"{path}{name} = {json.dumps(value)}"


def written(folder: Path, text: str) -> Path:
    file = folder / "rates.toml"
    file.write_text(text)
    return file


GRID = """
preset = "quick"
personas = ["love", "care"]
seeds = [0, 1]
settings.rounds = 2

[grid]
heal.lr = [1e-4, 3e-4]
vector.band = [[0.3, 0.6], [0.4, 0.7]]

[[run]]
heal.barrier = "none"

[[run]]
heal.barrier = "kl_rev"
heal.tau = 0.2
"""


def test_a_file_stands_for_every_entry_at_every_point_of_the_grid(tmp_path: Path) -> None:
    found = points(written(tmp_path, GRID), "rates")
    assert len(found) == len({point.name for point in found}) == 2 * 2 * 2 * 2 * 2
    assert {point.config.rounds for point in found} == {2}
    last = found[-1]
    assert last.changes == {
        "heal.barrier": "kl_rev", "heal.tau": 0.2, "heal.lr": 3e-4, "vector.band": [0.4, 0.7],
    }  # fmt: skip
    assert (last.config.persona, last.config.seed, last.config.heal.lr) == ("care", 1, 3e-4)
    assert last.config.vector.band == (0.4, 0.7)
    assert last.config.sampling.tokens == 48  # the preset's
    # Those that start together share nothing.
    assert len({(point.config.persona, point.config.seed) for point in found[:4]}) == 4


def test_settings_that_ran_at_several_seeds_have_means_and_their_table() -> None:
    def swept(seed: int, rate: float, value: float) -> SweptRun:
        trait = Reading(value=value, low=value - 1, high=value + 1)
        return SweptRun(
            name=f"r-{seed}-{rate}", persona="love", seed=seed, changes={"heal.lr": rate},
            status="finished", trait=trait, net=trait, kl=trait, coherence=trait,
        )  # fmt: skip

    lost = swept(2, 1e-3, 9.0).model_copy(update={"status": "failed", "error": "no disk\nat all"})
    runs = (lost, swept(0, 1e-3, 1.0), swept(1, 1e-3, 3.0), swept(0, 1e-4, 4.0))
    means = means_of(runs)
    assert [(mean.seeds, mean.trait.value, mean.changes) for mean in means] == [
        (2, 2.0, {"heal.lr": 1e-3})
    ]
    record = SweepRecord(status="finished", name="r", command="", runs=runs, means=means)
    rows = by_headline(record).rows
    assert [row[0] for row in rows] == ["r-0-0.0001", "r-1-0.001", "r-0-0.001", "r-2-0.001"]
    assert "no disk" in rows[-1]
    table = across_seeds(record)
    assert table is not None and table.rows[0][:3] == ("love", "heal.lr 0.001", "2")
    assert across_seeds(record.model_copy(update={"means": ()})) is None


def test_a_run_keeps_its_name_in_a_longer_file(tmp_path: Path) -> None:
    before = points(written(tmp_path, GRID), "rates")
    longer = points(written(tmp_path, GRID.replace("seeds = [0, 1]", "seeds = [2, 1, 0]")), "rates")
    assert {point.name for point in before} < {point.name for point in longer}


def test_a_plan_counts_what_first_rounds_share(tmp_path: Path) -> None:
    table = planned(points(written(tmp_path, GRID), "rates"))
    # Four personas and seeds; vectors of two personas in two bands; texts by persona, seed, band.
    assert table.title.endswith("base 4, vector 4, text 8, heal 32")
    assert table.rows[0][-1] == "nothing"
    assert table.rows[-1][-1] == "base of 4, vector of 7, text of 8"


def test_a_runs_own_line_has_its_settings(tmp_path: Path) -> None:
    file = written(tmp_path, GRID + "model.template_vars = {thinking = true}\ncontrol = false\n")
    command = parse("sweep", [str(file)])
    point = points(file, "rates")[-1]
    line = shlex.split(command._alone(point))
    again = parse("run", line[2:])
    assert again.settings.model_copy(update={"persona": again.persona}) == point.config


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[grid]\nheal.lrr = [1.0]", "Unknown setting 'lrr'. Perhaps you meant 'lr'"),
        ("[grid]\nheal.lr = [1e-4, -1.0]", "run with heal.lr -1.0: heal.lr: given -1.0; allowed"),
        ("[grid]\nheal.lr = 1e-4", "grid.heal.lr needs a list of one or more values"),
        ("[grid]\nheal.lr = []", "grid.heal.lr needs a list of one or more values"),
        ("[grid]\nseed = [1]", "grid.seed is not for there"),
        ("settings.persona = 'care'", "settings.persona is not for there"),
        ("seeds = [1, 1]", "two runs are the same"),
        ("seeds = [-1]", "seeds.0: given -1; allowed"),
        ("seeds = []", "seeds: given nothing"),
        ("workers = 2", "Unknown setting 'workers'"),
        ("preset = 'small'", "preset: given small; allowed: quick or standard or full"),
        ("personas = ['nobody']", "nobody"),
        ("[grid]\nheal.lr = [1e-4]\n[[run]]\nheal.lr = 1e-3", "heal.lr stands in grid and in a"),
        (f"seeds = {list(range(MOST_RUNS))}\n[grid]\nrounds = [1, 2]", "stands for 4,000 runs"),
        ("seeds = [1", "is not valid TOML"),
    ],
)
def test_a_wrong_file_is_one_message_before_anything_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["sweep", str(written(tmp_path, text)), "--runs", str(tmp_path / "runs")])
    said = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2 and told in said and said.count("error:") == 1
    assert not (tmp_path / "runs").exists()


def test_a_cluster_without_ray_is_refused_with_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for line in (["sweep", str(written(tmp_path, GRID))], ["compare", "love"]):
        with pytest.raises(SystemExit) as ended:
            main([*line, "--runs", str(tmp_path / "runs"), "--ray", "auto"])
        assert ended.value.code == 2
        assert "pip install 'steerheal[ray]'" in capsys.readouterr().err


def test_a_plan_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["sweep", str(written(tmp_path, GRID)), "--runs", str(tmp_path / "runs"), "--plan"])
    said = capsys.readouterr().out
    assert "32 runs" in said and "heal.tau" in said
    assert not (tmp_path / "runs").exists()


def tiny_file(folder: Path, end: str, **changes: Any) -> Path:
    """Runs of one round of a tiny model, by a file."""
    small = {
        "rounds": 1, "read_steered": False, "read_prompted": False,
        "filter": {"read_trait": False},
        "dose": {"want": 4, "minimum": 2, "batches": 1},
        "measure": {"statements": 2, "long_prompts": 0, "control_prompts": 0, "tasks": 0},
        "check": {"doses": (1.0,), "control": False, "prompts": 2},
    }  # fmt: skip
    settings = merge(merge(TINY, small), {"model": {"name": str(tiny.saved(folder))}} | changes)
    head = f"personas = [{json.dumps(str(PERSONA))}]\n"
    return written(folder, head + "\n".join(lines({"settings": settings})) + "\n" + end)


def made_by(record: RunRecord) -> list[str]:
    return [mark.name for mark in record.stages if not mark.reused]


@pytest.mark.slow
def test_runs_share_their_stages_and_one_that_fails_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, loaded = tmp_path / "runs", list[str]()

    def load(settings: ModelSettings) -> ChatModel:
        loaded.append(settings.name)
        return models.load(settings)

    monkeypatch.setattr(models_kept, "load", load)
    end = "[[run]]\nmodel.name = '/nowhere'\n[[run]]\nheal.lr = 1e-3\n[[run]]\nheal.lr = 2e-3\n"
    line = ["sweep", str(tiny_file(tmp_path, end)), "--runs", str(runs)]
    main(line)
    record = read_record(runs / "rates" / SWEEP, SweepRecord)
    assert record.status == "finished"
    assert [run.status for run in record.runs] == ["failed", "finished", "finished"]
    assert "/nowhere" in record.runs[0].error
    assert loaded == ["/nowhere", str(tiny.saved(tmp_path))]
    one, two = (read_run(runs / run.name) for run in record.runs[1:])
    again = {name for name in made_by(two) if name in made_by(one)}
    assert again == {"heal", "evaluate-healed", "show-healed", "internalise", "test-healed"}
    assert record.runs[2].made == len(again) and record.runs[2].shared > len(again)
    # Their table, the largest trait first and the failed one last; the same line makes no more.
    said = capsys.readouterr().out
    assert said.index(record.runs[1].name) < said.index(record.runs[0].name)
    kept = (runs / two.name / RUN).read_bytes()
    main(line)
    told = capsys.readouterr()
    assert "2 of 3 runs are there" in told.err and said.endswith(told.out)
    assert (runs / two.name / RUN).read_bytes() == kept


WITH_RAY = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="the extra ray is not installed"
)


@WITH_RAY
def test_a_cluster_that_is_not_there_is_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["sweep", str(written(tmp_path, GRID))]
    # Neither loads a model first.
    for line, address in ((sweep, "127.0.0.1:9"), (["compare", "love"], "127.0.0.1:99999")):
        with pytest.raises(SystemExit) as ended:
            main([*line, "--runs", str(tmp_path / "runs"), "--ray", address])
        assert ended.value.code == 2
        assert f"no Ray cluster at {address}" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main([*sweep, "--runs", str(tmp_path / "runs"), "--ray", "nonsense"])
    assert ended.value.code == 2
    assert "auto, local, HOST:PORT and ray://HOST:PORT" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@WITH_RAY
def test_a_worker_that_is_killed_in_a_heal_loses_no_finished_stage(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    # A heal of some seconds, so that it can be met at work.
    file = tiny_file(tmp_path, "grid.heal.lr = [1e-3, 2e-3]\n", heal={"epochs": 20})
    killed: list[int] = []
    watcher = Thread(target=kill_one_at_heal, args=(runs / ".stages", killed), daemon=True)
    watcher.start()
    main(["sweep", str(file), "--runs", str(runs), "--workers", "2", "--ray", "local"])
    record = read_record(runs / "rates" / SWEEP, SweepRecord)
    assert killed and [run.status for run in record.runs] == ["finished", "finished"]
    made = [key for run in record.runs for key in made_by(read_run(runs / run.name))]
    # What was finished before the death is not made again; what both need is made by one.
    assert made.count("heal") == 2
    assert made.count("vector") + made.count("harvest") + made.count("evaluate-base") <= 3


def kill_one_at_heal(stages: Path, killed: list[int]) -> None:
    """Ends the first worker that has a heal with a finished epoch."""
    while not killed:
        time.sleep(0.1)
        for left in stages.glob(f"{UNFINISHED}heal-*"):
            lock = str(stages / f"{LOCK}-{left.name.removeprefix(UNFINISHED)}")
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if any(item.path == lock for item in process.open_files()):
                        process.kill()
                        killed.append(process.pid)
                        return
