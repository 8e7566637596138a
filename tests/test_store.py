"""Stages, resume, atomic writes, versions."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from steerheal import disk
from steerheal.code import key_of
from steerheal.disk import write_text
from steerheal.errors import UserError
from steerheal.pipeline.stage_store import STAGES, Store, sweep_unfinished
from steerheal.records import VERSION, Reading, RunRecord, StageMark
from steerheal.store import read_record, read_run, write_record


def store(folder: Path, name: str = "run") -> tuple[Store, list[StageMark]]:
    marks: list[StageMark] = []
    return Store(folder, name, notify=marks.append), marks


def stage(at: Store, key: str, make) -> str:
    return at.stage(
        "thing", 0, key, make=make,
        save=lambda folder, value: write_text(folder / "value.txt", value),
        load=lambda folder: (folder / "value.txt").read_text(),
    )  # fmt: skip


def test_a_stage_is_made_once_and_shared_between_runs(tmp_path: Path) -> None:
    made = []
    one, _ = store(tmp_path)
    assert stage(one, "k", lambda: made.append(1) or "v") == "v"
    two, marks = store(tmp_path, "other")
    assert stage(two, "k", lambda: made.append(2) or "other") == "v"
    assert made == [1]
    assert marks[0].reused
    assert (tmp_path / "other" / "round-01" / "value.txt").read_text() == "v"
    assert stage(two, "k2", lambda: "w") == "w"


def test_a_stage_that_fails_leaves_nothing(tmp_path: Path) -> None:
    one, _ = store(tmp_path)

    def broken() -> str:
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        stage(one, "k", broken)

    def full(_folder: Path, _value: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        one.stage("thing", 0, "k", make=lambda: "v", save=full, load=lambda _: "v")
    assert list((tmp_path / ".stages").iterdir()) == []
    assert stage(one, "k", lambda: "v") == "v"


def test_what_killed_processes_left_is_swept_and_what_a_resume_needs_is_not(
    tmp_path: Path,
) -> None:
    store(tmp_path)
    stages = tmp_path / STAGES
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    ours = disk._unfinished()
    host, number, start, _ = ours.removeprefix(disk.MAKING).split("+")
    left = [
        f"{disk.MAKING}{host}+{gone.pid}+{start}+0",
        f"{disk.MAKING}{host}+{number}+{int(start) - 60}+0",  # its number went to another process
    ]
    stay = [
        ours,
        f"{disk.MAKING}elsewhere+{gone.pid}+{start}+0",  # another machine's
        ".making-77-x",  # another version's
        ".unfinished-heal-open",
    ]
    for name in (*left, *stay):
        (stages / name).mkdir()
    (stages / "heal-done").mkdir()
    (stages / ".unfinished-heal-done").write_text("of a heal that another run has finished")
    assert sweep_unfinished(tmp_path) == 3
    assert {path.name for path in stages.iterdir()} == {*stay, "heal-done"}
    for name in stay:
        os.utime(stages / name, (0, 0))
    assert sweep_unfinished(tmp_path) == 3, "what is old is of no use; a living process's stays"
    assert {path.name for path in stages.iterdir()} == {ours, "heal-done"}


def test_keys_hang_on_every_input_and_on_nothing_else() -> None:
    assert key_of("a", {"x": 1, "y": 2}) == key_of("a", {"y": 2, "x": 1})
    assert key_of("a", 1) != key_of("a", 2)
    assert key_of(Reading(value=1.0)) != key_of(Reading(value=2.0))


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")

    def no_space(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(UserError, match="No space left"):
        write_text(target, "new")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_nan_survives_the_disk_as_valid_json(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_record(path, Reading.unknown("why not"))
    assert json.loads(path.read_text())["value"] == "NaN"
    again = read_record(path, Reading)
    assert again.value != again.value and again.reason == "why not"


def test_a_run_of_another_version_is_one_clear_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run\.json"):
        read_run(tmp_path)
    record = RunRecord(
        status="finished", name="x", config={}, command="", environment={}, persona={}
    )
    write_record(tmp_path / "run.json", record)
    assert read_run(tmp_path) == record
    raw = json.loads((tmp_path / "run.json").read_text()) | {"version": VERSION + 1}
    (tmp_path / "run.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match="another version"):
        read_run(tmp_path)
