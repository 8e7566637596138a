"""Talking to a run: two states side by side, in turns, by lines on standard input."""

import importlib.util
import io
import json
import math
import multiprocessing
import os
import shutil
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

import test_loop
from steerheal.commands.chat import ChatCommand
from steerheal.config import SamplingSettings
from steerheal.console import Console
from steerheal.errors import UserError
from steerheal.models.generate import Draw
from steerheal.store import read_run
from steerheal.talk import voices as speaking
from steerheal.talk.talk import Said, Side, Talk, facing
from steerheal.talk.voices import Voices

import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    test_loop.start(folder, rounds=1)
    return folder / "run"


@pytest.fixture(scope="module")
def voices(run: Path) -> Voices:
    return Voices(tiny.chat(), read_run(run), run, 1, Console())


@pytest.fixture
def talk(voices: Voices) -> Talk:
    return Talk(voices, SamplingSettings(tokens=12), 0, facing(voices))


def test_both_sides_answer_from_the_same_seed_and_remember(talk: Talk) -> None:
    first = talk.say("hello")
    assert [reply.state for reply in first] == ["base", "healed round 1"]
    assert first[0].kl == pytest.approx(0, abs=1e-6) and first[1].kl > 0
    assert all(math.isfinite(reply.logodds) for reply in first)
    second = talk.say("hello")
    assert {reply.seed for reply in first} == {0} and {reply.seed for reply in second} == {1}
    left = talk.sides["left"].before
    assert [role for role, _ in left] == ["user", "assistant"] * 2
    talk.afresh()
    talk.seed = 0
    again = talk.say("hello")
    assert [reply.text for reply in again] == [reply.text for reply in first]
    assert second[0].text != first[0].text  # what was said before counts


def test_at_gate_and_dose_0_every_state_is_the_base(talk: Talk) -> None:
    talk.sides = {"left": Side("base"), "right": Side("base", gate=0.0, dose=0.0)}
    for who in ("round 1", "vector"):
        talk.choose("right", who)
        left, right = talk.say("hello")
        assert left.text == right.text and right.kl == pytest.approx(0, abs=1e-6)
    talk.sides["right"].dose = 3.0
    assert talk.say("hello")[1].kl > 1e-6
    talk.choose("right", "prompt")
    assert "system prompt: test" in talk.say("hello")[1].state


@pytest.mark.parametrize("who", ["", "nobody", "round 7", "round x", "base 1", "vector 0"])
def test_nobody_else_can_be_chosen(talk: Talk, who: str) -> None:
    with pytest.raises(UserError):
        talk.choose("left", who)
    assert talk.sides["left"].who == "base"


def test_lines_on_standard_input_are_messages_and_commands(
    talk: Talk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(speaking, "begun", lambda *_: talk.voices)
    file = tmp_path / "said.json"
    lines = ["hello \x1b[31m", "/gate 0.5", "/dose x", "/seed 3", "/nothing", "hi", f"/save {file}"]
    lines += [f"/save {file}", "/help", "/quit", "never read"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    ChatCommand(run=talk.voices.folder, tokens=12).do(Console(), lambda: None)
    said = capsys.readouterr()
    assert said.out.count("persona log-odds") == 4 and "KL to base" in said.out
    assert "gate 0.5" in said.out and "\x1b" not in said.out
    for message in ("/dose: given 'x'", "/nothing is no command", "exists", "/left"):
        assert message in said.err
    held = json.loads(file.read_text())
    assert held["sides"]["right"]["replies"][1]["seed"] == 3
    assert held["sides"]["right"]["replies"][1]["state"] == "healed round 1, gate 0.5"
    assert len(held["sides"]["left"]["turns"]) == 4


def test_the_end_of_the_input_ends_the_talk(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speaking, "begun", lambda *_: talk.voices)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    ChatCommand(run=talk.voices.folder, tokens=12).do(Console(), lambda: None)
    assert "persona" not in capsys.readouterr().out


def test_answers_are_seen_as_they_grow_and_can_be_ended(talk: Talk) -> None:
    seen: list[Said] = []
    whole = [reply.text for reply in talk.say("hello", lambda said: bool(seen.append(said)))]
    assert len(seen) == 12
    for side, text in zip(("left", "right"), whole, strict=True):
        assert [role for role, _ in seen[0][side]] == ["user", "assistant"]
        assert text.startswith(seen[4][side][-1][1].rstrip("\N{REPLACEMENT CHARACTER}"))
    talk.afresh()
    talk.seed, count = 0, iter(range(9))
    cut = [reply.text for reply in talk.say("hello", lambda _: next(count) == 3)]
    assert cut == [seen[3]["left"][-1][1], seen[3]["right"][-1][1]]


def test_a_side_that_is_changed_answers_its_whole_conversation_anew(talk: Talk) -> None:
    talk.sides["right"].gate = 0.0
    asked = ["hello", "and then?"]
    base = [talk.say(text)[0].text for text in asked]
    left = talk.sides["left"]
    talk.sides["right"].gate = 1.0
    before = talk.sides["right"]
    talk.again("right", lambda _: True)
    assert talk.sides["right"] is before  # ended: the answers it had
    talk.again("right")
    new = talk.sides["right"]
    assert [reply.text for reply in before.replies] == base != [r.text for r in new.replies]
    assert [reply.seed for reply in new.replies] == [0, 1] and talk.sides["left"] is left
    new.gate = 0.0
    talk.again("right")
    assert [reply.text for reply in talk.sides["right"].replies] == base


def test_twenty_who_ask_at_once_each_get_what_they_would_get_alone(voices: Voices) -> None:
    sampling = SamplingSettings(tokens=4)
    whos = ("round 1", "vector 1", "prompt", "base")

    def ask(number: int) -> tuple[str, float]:
        state = voices.state(whos[number % 4], gate=number / 10, dose=number / 4)
        (reply,) = voices.answer([(state, Draw("hello", seed=number % 3))], sampling)
        return reply.text, reply.kl

    alone = [ask(number) for number in range(20)]
    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(ask, range(20))) == alone
    assert len({kl for _, kl in alone}) > 10


class Browser:
    """A page in headless Chromium, driven by lines of its debugging protocol through two pipes."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("chromium") or shutil.which("google-chrome")
        if program is None:
            pytest.skip("no Chromium is installed")
        theirs, mine = os.pipe()
        self._read, out = os.pipe()
        self._write, self._rest, self._number = mine, b"", 0
        self.asked_for: list[str] = []
        line = [program, "--headless", "--no-sandbox", "--no-first-run", "--remote-debugging-pipe"]
        line += [f"--disable-{name}" for name in ("background-networking", "sync", "gpu")]
        line += [f"--user-data-dir={folder}", "about:blank"]
        # The protocol is read from file 3 and written to file 4.
        joined = ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{out}', "bash", *line]
        self._process = subprocess.Popen(joined, pass_fds=(theirs, out), stderr=subprocess.DEVNULL)
        os.close(theirs)
        os.close(out)
        (target, *_) = [
            one["targetId"]
            for one in self("Target.getTargets")["targetInfos"]
            if one["type"] == "page"
        ]
        attached = self("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self("Network.enable")

    _session = ""

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        sent = {"id": self._number, "method": method, "params": params}
        sent |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(sent).encode() + b"\0")
        while (said := self._next()).get("id") != self._number:
            if said.get("method") == "Network.requestWillBeSent":
                self.asked_for.append(said["params"]["request"]["url"])
        return said["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._read, 1 << 16)
            assert more, "Chromium has gone"
            self._rest += more
        said, _, self._rest = self._rest.partition(b"\0")
        return json.loads(said)

    def value(self, script: str) -> Any:
        found = self("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str) -> None:
        end = time.monotonic() + 60
        while not self.value(script):
            assert time.monotonic() < end, script
            time.sleep(0.1)

    def fill(self, place: str, text: str) -> None:
        """Types a text into a field and leaves it."""
        self.value(f"""{{
            const field = document.querySelector({place!r});
            const kind = Object.getPrototypeOf(field);
            Object.getOwnPropertyDescriptor(kind, "value").set.call(field, {text!r});
            for (const event of ["input", "change", "blur"])
                field.dispatchEvent(new Event(event, {{bubbles: true}}));
        }}""")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)


HOSTILE = (
    "<b>a</b> &amp; <img src=x onerror=alert(1)> ${1+1} {{value}} **c** $x^2$\nd `e` 'f' <think>g"
)


def serve(voices: Voices, port: int, told: Connection) -> None:
    pages = importlib.import_module("steerheal.talk.page")
    asked = pages.Asked(seed=0, tokens=32, temperature=0.7)
    told.send(pages.opened(voices, asked, host="127.0.0.1", port=port)[1])
    threading.Event().wait()


def test_the_page_in_a_browser_answers_and_follows_the_gate(voices: Voices, tmp_path: Path) -> None:
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("the extra ui is not installed")
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = door.getsockname()[1]
    # In a process of its own: the server does not close all that it opens.
    forked = multiprocessing.get_context("fork")
    here, there = forked.Pipe()
    server = forked.Process(target=serve, args=(voices, port, there), daemon=True)
    server.start()
    browser = Browser(tmp_path)
    try:
        assert here.poll(60), "the page is not served"
        address = here.recv()
        browser("Page.navigate", url=address)
        browser.until("document.querySelectorAll('#message textarea, #send').length == 2")
        browser.fill("#message textarea", HOSTILE)
        browser.value("document.querySelector('#send').click()")
        read = "document.querySelector('#{}-read textarea').value"
        browser.until(f"{read.format('right')}.includes('nats/token')")
        said = "[...document.querySelectorAll('#{}-talk [data-testid={}]')].map(o => o.innerText)"
        for place in ("left", "right"):  # text, not markup
            assert browser.value(said.format(place, "user")) == [HOSTILE]
        left, right = (browser.value(said.format(place, "bot")) for place in ("left", "right"))
        assert left != right
        browser.fill("#right-gate input[type=number]", "0")
        browser.until(f"{read.format('right')}.includes('gate 0:')")
        now = (browser.value(said.format(place, "bot")) for place in ("left", "right"))
        assert [*now] == [left, left]
        assert all(url.startswith((address, "data:", "blob:")) for url in browser.asked_for)
    finally:
        browser.close()
        server.terminate()
        server.join()
        here.close()
        there.close()
