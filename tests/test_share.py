"""Stages at a URL: made by one machine, found by another, whole or not at all."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from steerheal.cli import main
from steerheal.pipeline.stage_head import HEAD
from steerheal.pipeline.stage_store import STAGES, Store
from steerheal.records import StageMark

MEMORY = MemoryFileSystem()


class Machine:
    """A folder of runs that shares its stages, and what is said of them."""

    def __init__(self, runs: Path, url: str) -> None:
        self.said: list[str] = []
        self.marks: list[StageMark] = []
        self.runs, self.made = runs, 0
        self.store = Store(runs, "run", notify=self.marks.append, note=self.said.append, share=url)

    def stage(self, store: Store | None = None) -> str:
        return (store or self.store).stage("text", 0, "1234", make=self._make, save=save, load=load)

    def _make(self) -> str:
        self.made += 1
        return "kept"

    def files(self) -> dict[str, bytes]:
        home = self.runs / STAGES / "text-1234"
        return {
            str(file.relative_to(home)): file.read_bytes()
            for file in home.rglob("*")
            if file.is_file()
        }


def save(folder: Path, text: str) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "text").write_text(text)
    (folder / "empty").touch()


def load(folder: Path) -> str:
    return (folder / "deep" / "text").read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Callable[[str], Machine]]:
    yield lambda name: Machine(tmp_path / name, "memory://shared")
    MEMORY.rm("/shared", recursive=True)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_stage_that_one_machine_finished_is_not_made_on_another(
    kind: str, tmp_path: Path
) -> None:
    url = "memory://once" if kind == "memory" else (tmp_path / "store").as_uri()
    one, two = Machine(tmp_path / "one", url), Machine(tmp_path / "two", url)
    assert one.stage() == two.stage(two.store.beside("inner")) == "kept"
    assert (one.made, two.made) == (1, 0) and one.files() == two.files()
    assert [mark.reused for mark in (*one.marks, *two.marks)] == [False, True]
    assert one.said == two.said == []
    assert (tmp_path / "two" / "run" / "inner" / "round-01" / "deep" / "text").is_file()
    # One that was finished before it was shared is sent as well.
    alone = Machine(tmp_path / "three", "")
    alone.stage()
    Machine(tmp_path / "three", f"{url}/other").stage()
    late = Machine(tmp_path / "four", f"{url}/other")
    assert late.stage() == "kept" and late.made == 0


def test_a_stage_that_is_damaged_there_is_made_and_sent_again(
    machine: Callable[[str], Machine],
) -> None:
    machine("one").stage()
    for number, harm in enumerate((cut, lost, astray)):
        harm()
        two, three = machine(f"two-{number}"), machine(f"three-{number}")
        assert two.stage() == three.stage() == "kept"
        assert (two.made, three.made) == (1, 0)
        assert ["damaged at memory://shared" in said for said in two.said] == [True]


def contents() -> list[str]:
    return [name for name in MEMORY.find("/shared/text-1234") if HEAD not in name]


def cut() -> None:
    MEMORY.pipe_file(contents()[0], b"nonsense")


def lost() -> None:
    MEMORY.rm_file(contents()[0])


def astray() -> None:
    """A name that leads out of the stage."""
    head = f"/shared/text-1234/{HEAD}"
    MEMORY.pipe_file(head, MEMORY.cat_file(head).replace(b"deep/text", b"../text"))


def test_a_store_that_fails_ends_no_run_and_shows_no_half_of_a_stage(
    machine: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = type(MEMORY).pipe_file

    def torn(store: MemoryFileSystem, path: str, value: bytes) -> None:
        if path.endswith(HEAD):
            raise ConnectionError("no way there")
        write(store, path, value)

    with monkeypatch.context() as patch:
        patch.setattr(type(MEMORY), "pipe_file", torn)
        one = machine("one")
        assert one.stage() == "kept" and contents()
        assert "not shared at memory://shared: no way there" in one.said[0]
    two = machine("two")
    assert two.stage() == "kept" and two.made == 1 and two.said == []

    def unread(*_: object) -> bytes:
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(type(MEMORY), "cat_file", unread)
    three = machine("three")
    assert three.stage() == "kept" and three.made == 1
    assert "not to be had from memory://shared: nobody answers" in three.said[0]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("shared", "is no URL"),
        ("nowhere://shared", "Protocol not known"),
        ("file:///proc/shared", "cannot be used"),
    ],
)
def test_a_place_that_cannot_be_used_is_told_before_a_model_is_loaded(
    url: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text("seeds = [0]\n")
    for line in (["run", "love"], ["compare", "love"], ["sweep", str(file)]):
        with pytest.raises(SystemExit) as ended:
            main([*line, "--runs", str(tmp_path / "runs"), "--share", url])
        assert ended.value.code == 2
        assert f"--share {url}" in (told := capsys.readouterr().err) and said in told
    assert not (tmp_path / "runs").exists()
