"""One process at a time in a run's folder and on a stage, and no trace of one that was killed."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from steerheal.errors import UserError
from steerheal.pipeline.claims import LOCK, alone, claimed, claimed_free, is_alone
from steerheal.pipeline.stage_store import STAGES, Store

SOURCE = Path(__file__).parents[1] / "src"
HOLDER = """
import sys
from pathlib import Path
from steerheal.pipeline.claims import alone, claimed, claimed_free
kind, place, name, record = sys.argv[1:]
place = Path(place)
door = {
    "free": lambda: claimed_free(place, name),
    "named": lambda: claimed(place / name),
    "alone": lambda: alone(place / name, waits=lambda: print("waits", flush=True)),
}[kind]
with door() as found:
    if record:
        (found / "run.json").write_text("{}")
    print(found and found.name, flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(kind: str, place: Path, name: str, record: str = "") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a claim until its input ends or it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, kind, str(place), name, record],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(SOURCE)},
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.communicate("", timeout=60)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_runs_that_start_together_have_a_folder_each(tmp_path: Path) -> None:
    with (
        holder("free", tmp_path, "love", "record") as one,
        holder("free", tmp_path, "love", "record") as two,
        holder("free", tmp_path, "love", "record") as three,
    ):
        names = sorted(first_line(process) for process in (one, two, three))
    assert names == ["love", "love-2", "love-3"]
    assert {path.name for path in tmp_path.rglob("*")} == {*names, "run.json"}
    with claimed_free(tmp_path, "love") as folder:
        assert folder.name == "love-4"


def test_a_folder_in_which_another_process_works_is_refused_until_it_ends(tmp_path: Path) -> None:
    with holder("named", tmp_path, "one", "record") as other:
        first_line(other)
        told = pytest.raises(UserError, match=r"Another steerheal process is at work in .*one")
        with told, claimed(tmp_path / "one"):
            pytest.fail("two processes in one folder")
        # The same folder by another way.
        (tmp_path / "link").symlink_to(tmp_path / "one")
        with pytest.raises(UserError, match="Another"), claimed(tmp_path / "link"):
            pass
    with claimed(tmp_path / "one"):
        pass


@pytest.mark.parametrize(("record", "expected"), [("", "love"), ("record", "love-2")])
def test_a_process_that_is_killed_blocks_a_name_only_with_a_record(
    tmp_path: Path, record: str, expected: str
) -> None:
    with holder("free", tmp_path, "love", record) as other:
        assert first_line(other) == "love"
        other.kill()
        other.communicate()
    with claimed_free(tmp_path, "love") as folder:
        assert folder.name == expected
    with claimed(tmp_path / "love"):
        pass


def test_a_run_that_ends_before_its_first_record_leaves_nothing(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with pytest.raises(UserError, match="no model"), claimed_free(runs, "love") as folder:
        assert (folder / LOCK).is_file()
        raise UserError("no model")
    assert not runs.exists()


def test_folders_and_files_that_are_no_runs_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "love").write_text("a file")
    (tmp_path / "love-2").mkdir()
    (tmp_path / "love-2" / "notes.txt").touch()
    (tmp_path / "love-3").mkdir()
    with claimed_free(tmp_path, "love") as folder:
        assert folder.name == "love-3", "an empty folder holds no run"


def test_a_stage_is_made_by_one_process_while_the_other_waits_and_takes_it(tmp_path: Path) -> None:
    notes: list[str] = []
    store = Store(tmp_path, "run", notify=lambda _: None, note=notes.append)
    home = tmp_path / STAGES / "thing-key"
    with holder("alone", home.parent, home.name) as other:
        first_line(other)
        assert not is_alone(home)

        def ends(text: str) -> None:
            notes.append(text)
            other.communicate("", timeout=60)
            neighbour = Store(tmp_path, "next", notify=lambda _: None)
            neighbour._make(home, lambda: "theirs", lambda at, _: (at / "v").touch())

        store._note = ends
        found = store.stage(
            "thing", 0, "key",
            make=lambda: pytest.fail("made twice"),
            save=lambda _folder, _value: None,
            load=lambda _folder: "theirs",
        )  # fmt: skip
    assert found == "theirs" and store.marks[0].reused
    assert "another run is making it" in notes[0]
    assert is_alone(home)
    assert [path.name for path in home.parent.iterdir()] == ["thing-key"]


def test_a_lock_that_the_disk_refuses_keeps_nobody_from_making(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise PermissionError(13, "not yours")

    monkeypatch.setattr("filelock.FileLock.acquire", refuses)
    with alone(tmp_path / "stage", waits=lambda: pytest.fail("waits for nobody")):
        made = True
    assert made
    with pytest.raises(UserError, match="permissions"), claimed(tmp_path / "run"):
        pass
