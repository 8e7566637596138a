"""Nothing finished is lost: what is damaged is made again, and what holds more stays."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import test_loop
from steerheal.console import Console
from steerheal.disk import write_text
from steerheal.errors import UserError
from steerheal.models.batch import shrinking
from steerheal.pipeline.closing import closing
from steerheal.pipeline.stage_store import STAGES, Store, holds_less
from steerheal.records import RoundRecord, RunRecord, StageMark
from steerheal.store import read_run, write_record

pytestmark = pytest.mark.slow

SHORT = {"rounds": 1, "check": {"doses": (1.0,), "prompts": 2, "per_foundation": 1, "tokens": 4}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    test_loop.start(runs, **SHORT)
    return runs


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def garbage(file: Path) -> None:
    file.write_bytes(b"\xff\x00nonsense" * 7)


def reshaped(file: Path) -> None:
    """A file of its own kind that holds something else."""
    if file.suffix == ".safetensors":
        save_file({"other": torch.ones(2, 3)}, file)
    else:
        file.write_text("{}\n")


@pytest.mark.parametrize(
    "harm", [cut, garbage, reshaped, Path.unlink, lambda file: file.write_bytes(b"")],
    ids=["cut", "garbage", "wrong shape", "missing", "empty"],
)  # fmt: skip
def test_a_run_whose_every_stage_is_damaged_ends_in_the_same_record_and_files(
    finished: Path, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(finished, runs)
    before = test_loop.timeless(finished / "run")
    kinds, stages = set(), sorted((runs / STAGES).iterdir())
    for number, stage in enumerate(stages):
        files = [path for path in sorted(stage.rglob("*")) if path.is_file()]
        victim = files[number % len(files)]
        kinds.add(victim.name)
        harm(victim)
    assert len(kinds) > 5
    test_loop.start(runs, **SHORT)
    after = test_loop.timeless(runs / "run")
    marks = after["record"].pop("stages")
    assert all(mark["made_again"] == "the one on disk was damaged" for mark in marks)
    before["record"].pop("stages")
    assert after == before
    aside = [path for path in (runs / STAGES).iterdir() if path.name.startswith(".damaged-")]
    assert len(aside) == len(stages)


def test_every_file_of_every_stage_is_watched(finished: Path, tmp_path: Path) -> None:
    """All kinds of files, one by one, on a stage's own reading: no model is run."""
    seen = set()
    for stage in sorted((finished / STAGES).iterdir()):
        for file in [path for path in sorted(stage.rglob("*")) if path.is_file()]:
            runs = tmp_path / str(len(seen))
            shutil.copytree(stage, runs / STAGES / stage.name)
            victim = runs / STAGES / stage.name / file.relative_to(stage)
            victim.write_bytes(victim.read_bytes()[:-1] + b" ")
            name, _, key = stage.name.rpartition("-")[0].rpartition("-")
            key = stage.name.removeprefix(f"{name}-")
            notes: list[str] = []
            store = Store(runs, "run", notify=lambda _: None, note=notes.append)
            store.stage(
                name, 0, key, make=lambda: None,
                save=lambda folder, _: (folder / "again").touch(), load=lambda _: None,
            )  # fmt: skip
            same = file.read_bytes() == victim.read_bytes() if victim.exists() else False
            assert same or "is damaged" in notes[0], file
            seen.add((name, file.name))
    assert len({file for _, file in seen}) >= 10


def store(folder: Path) -> tuple[Store, list[str]]:
    notes: list[str] = []
    return Store(folder, "run", notify=lambda _: None, note=notes.append), notes


def test_a_stage_that_may_not_be_read_is_not_taken_for_damaged(tmp_path: Path) -> None:
    one, _ = store(tmp_path)

    def stage(load: Callable[[Path], str]) -> str:
        return one.stage(
            "a", 0, "k-c", make=lambda: "v", save=lambda at, _: (at / "f").touch(), load=load
        )

    assert stage(lambda _: "v") == "v"

    def closed(_folder: Path) -> str:
        raise PermissionError(13, "Permission denied")

    with pytest.raises(UserError, match="may not be read"):
        stage(closed)
    assert [path.name for path in (tmp_path / STAGES).iterdir()] == ["a-k-c"]


def test_a_stage_that_cannot_be_read_back_as_made_is_an_error_and_no_endless_circle(
    tmp_path: Path,
) -> None:
    one, notes = store(tmp_path)

    def broken(_folder: Path) -> str:
        raise ValueError("a mistake in the code")

    for _ in range(2):
        with pytest.raises(Exception, match="a mistake in the code"):
            one.stage(
                "a", 0, "k", make=lambda: "v", save=lambda at, _: (at / "f").touch(), load=broken
            )
    assert len(notes) == 1


def record(status: str = "running", rounds: int = 0, stopped: bool = False) -> RunRecord:
    row = RoundRecord(
        round=0, multiplier=1, walk=(), kept=0, drawn=0, reasons={}, outcome="folded",
        vector_norms={}, direction_cosine=1,
    )  # fmt: skip
    rows = [row.model_copy(update={"round": i}) for i in range(rounds)]
    if stopped:
        rows.append(row.model_copy(update={"outcome": "stopped"}))
    return RunRecord(
        status=status, name="run", config={}, command="steerheal run love", environment={},
        persona={}, rounds=tuple(rows),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("new", "old", "less"),
    [
        (record(), record(), False),
        (record(), record("finished", 2), True),
        (record("running", 2), record("finished", 2), True),
        (record("failed", 3), record("finished", 2), True),
        (record("finished", 2), record("finished", 2), False),
        (record("finished", 1), record("finished", 2), True),
        (record("running", 1), record("interrupted", 2), True),
        (record("running", 2), record("interrupted", 2), False),
        (record("finished", 1), record("failed", 2), True),
        # What ended after a check, as asked, is there to go on from.
        (record("running", 0), record("finished", 0, stopped=True), True),
        (record("running", 1), record("finished", 0, stopped=True), False),
        (record("finished", 0, stopped=True), record("running", 1), True),
    ],
)
def test_what_holds_less(new: RunRecord, old: RunRecord, less: bool) -> None:
    assert holds_less(new, old) == less


def test_a_record_and_its_files_stay_until_a_run_has_come_as_far(tmp_path: Path) -> None:
    one, _ = store(tmp_path)

    def stage(at: Store, key: str, value: str) -> None:
        at.stage(
            "thing", 0, key, make=lambda: value,
            save=lambda folder, made: (folder / "v").write_text(made) and None,
            load=lambda folder: (folder / "v").read_text(),
        )  # fmt: skip

    stage(one, "in-old", "old")
    one.write_run(record("finished", 1))
    content = (one.folder / "run.json").read_bytes()
    again, _ = store(tmp_path)
    again.write_run(record("running"))
    stage(again, "in-new", "new")
    again.write_run(record("running", 1))
    assert (one.folder / "run.json").read_bytes() == content
    assert (one.folder / "round-01" / "v").read_text() == "old", "files are the record's"
    again.write_run(record("finished", 1).model_copy(update={"outcome": "by other code"}))
    assert read_run(one.folder).outcome == "by other code" and again.held is None
    assert (one.folder / "round-01" / "v").read_text() == "new"


@pytest.mark.parametrize("keep", [0, 0.5, 0.95, 1.0])
def test_a_damaged_record_is_told_with_the_command_that_brings_the_run_back(
    tmp_path: Path, keep: float
) -> None:
    folder = tmp_path / "one"
    whole = record("finished", 1).model_copy(
        update={"command": "steerheal run 'my p.toml' --seed 3"}
    )
    write_record(folder / "run.json", whole)
    content = (folder / "run.json").read_bytes()
    rest = b"\x00\xff" if keep == 1.0 else b""
    (folder / "run.json").write_bytes(content[: int(keep * len(content))] + rest)
    with pytest.raises(UserError) as told:
        read_run(folder)
    text = str(told.value)
    assert "run.json is damaged" in text and "Delete that file" in text
    assert f"--runs {tmp_path} --name one" in text
    line = f"`steerheal run 'my p.toml' --seed 3 --runs {tmp_path} --name one`"
    assert (line in text) == (keep > 0)
    assert "Expecting" not in text and "line 1" not in text


@pytest.mark.parametrize("content", ["[]", "{}", "null", "3", '{"version": 2}', "[" * 100_000])
def test_a_record_of_another_shape_is_damaged_too(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        read_run(tmp_path)


def said(runs: Path, capsys: pytest.CaptureFixture[str], **changes: object) -> str:
    """The last lines of a run."""
    found = test_loop.start(runs, **SHORT | changes)
    capsys.readouterr()
    closing(found, runs / "run", runs / "run" / "report.html", Console())
    return capsys.readouterr().out


@pytest.mark.parametrize("until", ["check1", "check2"])
def test_a_run_that_ends_after_a_check_says_what_it_saw_and_how_to_go_on(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], until: str
) -> None:
    shutil.copytree(finished / STAGES, tmp_path / STAGES)
    text = said(tmp_path, capsys, until=until)
    check = {"check1": "check 1", "check2": "check 2"}[until]
    saw = read_run(tmp_path / "run").rounds[0].findings[-1]
    assert f"{check} saw: {saw.outcome}. {saw.words}" in text and saw.advice in text
    assert f"steerheal run --resume {tmp_path / 'run'}\n" in text
    assert (f"{tmp_path / 'run'} --until check2" in text) == (until == "check1")
    assert "healed" not in text.replace("nothing was healed", "") and "best " not in text


def test_a_starved_run_says_what_to_try_and_nothing_of_a_healed_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(tmp_path, capsys, filter={"words": 500})
    assert "Round 1 starved" in text and "try   " in text and "another --name" in text
    assert "--resume" not in text and "no healed round" not in text and "best " not in text


def test_a_stage_says_how_small_its_batches_had_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[int] = []

    def work(rows: list[int]) -> None:
        if len(rows) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        done.extend(rows)

    def make(name: str, size: int) -> StageMark:
        store = Store(tmp_path, name, notify=Console().stage_mark)
        store.stage(
            f"read-{size}", 0, "k",
            make=lambda: shrinking(list(range(size)), work),
            save=lambda folder, _: write_text(folder / "x", "1"),
            load=lambda folder: (folder / "x").read_text(),
        )  # fmt: skip
        return store.marks[0]

    assert make("one", 2).halved == 0 and make("one", 10).halved == 2
    assert done == [0, 1, *range(10)]
    assert "read-10 · memory ran out: 2 rows or positions fit" in capsys.readouterr().err
    again = make("two", 10)
    assert again.reused and again.halved == 2
    assert "memory" not in capsys.readouterr().err
