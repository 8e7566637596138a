"""The page before anything is loaded, and what it streams from; `test_chat` has it in a browser."""

import importlib.util
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import pytest

from reports import fill, folded, run_record, starved
from steerheal.cli import main
from steerheal.errors import UserError
from steerheal.talk.stream import streamed
from steerheal.talk.talk import Said


@pytest.fixture
def busy() -> Iterator[int]:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        door.listen()
        yield door.getsockname()[1]


def refused(*arguments: str | Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["ui", *map(str, arguments)])
    assert stop.value.code == 2


def test_what_cannot_be_served_is_refused_in_a_sentence_before_anything_is_loaded(
    tmp_path: Path,
    busy: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = fill(tmp_path / "run", run_record(rounds=(folded(0),)))
    none = fill(tmp_path / "none", run_record(rounds=(starved(0),), best=None))
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "gradio" or there(name))
    refused(tmp_path)
    refused(none)
    refused(run, "--port", str(busy))
    refused(run, "--host", "no.such.host.invalid")
    refused(run, "--host", "203.0.113.7")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gradio" else there(name)
    )
    refused(run)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 6 and all(line.startswith("error: ") for line in said)
    words = ("run.json", "no folded round", f":{busy}", "--host", "--port", "steerheal[ui]")
    for word, line in zip(words, said, strict=True):
        assert word in line


def at(text: str) -> Said:
    return {"left": [("assistant", text)]}


def test_work_is_seen_as_it_comes_and_what_nobody_has_time_for_is_left_out() -> None:
    asked = Event()

    def work(watch: Callable[[Said], bool]) -> None:
        watch(at("a"))
        assert asked.wait(5)
        for text in "bcd":
            watch(at(text))

    found = streamed(work, Event())
    assert next(found) == at("a")
    asked.set()
    time.sleep(0.05)
    assert [*found][-1:] in ([], [at("d")])


def test_work_that_fails_says_so_to_who_listens_and_is_told_when_nobody_does() -> None:
    def broken(_: Callable[[Said], bool]) -> None:
        raise UserError("too long")

    with pytest.raises(UserError, match="too long"):
        next(streamed(broken, Event()))
    ended = Event()

    def endless(watch: Callable[[Said], bool]) -> None:
        while not watch(at("…")):
            time.sleep(0.001)
        ended.set()

    found = streamed(endless, Event())
    next(found)
    found.close()
    assert ended.wait(5)
