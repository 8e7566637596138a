"""A run's metrics at a tracker: once each, on one axis, and never at the price of the run."""

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import reports
from steerheal import extras
from steerheal.cli import main
from steerheal.config import RunConfig
from steerheal.personas import find
from steerheal.pipeline import tracking
from steerheal.pipeline.closing import onward
from steerheal.pipeline.plan import Plan
from steerheal.records import RoundRecord, RunRecord
from steerheal.records.tracking import TrackRecord
from steerheal.store import read_record, write_record

EVENTS = importlib.util.find_spec("tensorboard") is not None
needs_events = pytest.mark.skipif(not EVENTS, reason="tensorboard is not installed (extra track)")


class Heard:
    """The listener behind, and how much it hears."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.rounds: list[int] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def round_done(self, record: RoundRecord) -> None:
        self.rounds.append(record.round)


class Kept:
    """A tracker in memory, which fails where it is told to."""

    tracker = SimpleNamespace(info=SimpleNamespace(run_id="own"))

    def __init__(self, *fails: str) -> None:
        self.fails = fails
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.settings: list[dict[str, Any]] = []
        self.ended = 0

    def start(self) -> None:
        self._fail("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings.append(values)

    def log(self, values: dict[str, float], step: int) -> None:
        self._fail("log")
        self.lines.append((step, values))

    def finish(self) -> None:
        self._fail("finish")
        self.ended += 1

    def _fail(self, what: str) -> None:
        if what in self.fails:
            raise ConnectionError(f"no network to {what}\nand a long story")


def plan(folder: Path) -> Plan:
    return Plan(folder, RunConfig(), find("love"), "steerheal run love", None)


def written(folder: Path, record: RunRecord) -> RunRecord:
    write_record(folder / "run.json", record)
    return record


def follow(folder: Path, record: RunRecord, *, only: int | None = None) -> Heard:
    """The loop as a tracker hears it."""
    heard = Heard()
    with tracking.tracked("tensorboard", plan(folder), heard) as listener:
        listener.note("the base was read")
        for row in record.rounds[:only]:
            listener.round_done(row)
    return heard


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    found = Kept()
    monkeypatch.setattr(tracking, "_tracker", lambda *_: found)
    yield found


def test_a_run_that_goes_on_continues_the_axis_and_passes_nothing_on_twice(
    tmp_path: Path, kept: Kept
) -> None:
    record = written(tmp_path, reports.run_record())
    assert follow(tmp_path, record, only=1).rounds == [0]
    first = list(kept.lines)
    assert follow(tmp_path, record).rounds == [0, 1, 2]
    assert kept.lines[: len(first)] == first
    again = list(kept.lines)
    assert follow(tmp_path, record).rounds == [0, 1, 2]
    assert kept.lines == again
    # The base, then every step of a heal and the end of its round.
    assert [step for step, _ in kept.lines] == list(range(1 + 3 * (16 + 1)))
    assert len(kept.settings) == 1 and kept.settings[0]["heal.rank"] == 16
    assert set(map(type, kept.settings[0].values())) <= {bool, int, float, str}
    held = read_record(tmp_path / "track/tensorboard.json", TrackRecord)
    assert (held.rounds, held.steps, held.missed) == (3, 52, 0)


def test_what_is_passed_on_is_what_the_record_holds(tmp_path: Path, kept: Kept) -> None:
    record = written(tmp_path, reports.run_record())
    follow(tmp_path, record)
    lines = dict(kept.lines)
    assert lines[0]["base/trait"] == record.base.trait.value
    steps = record.rounds[0].heal.steps
    assert [lines[1 + place]["heal/ce"] for place in range(16)] == [step.ce for step in steps]
    # After epochs of eight steps; before the first there is no step.
    held = {step: line["heal/held_out"] for step, line in lines.items() if "heal/held_out" in line}
    assert [held[place] for place in (8, 16)] == list(record.rounds[0].heal.held_out[1:])
    end = lines[17]
    row = record.rounds[0]
    assert end["round"] == 1 and end["text/survival"] == row.kept / row.drawn
    assert end["healed/trait"] == row.healed.trait.value and end["kl/round"] == row.kl_round
    assert end["healed/coherence"] == row.healed.coherence
    assert {f"steered/{name}" for name, item in row.steered.values.items()
            if not math.isnan(item.value)} <= end.keys()  # fmt: skip
    assert all(math.isfinite(value) for line in lines.values() for value in line.values())
    starving = written(tmp_path / "b", reports.run_record(rounds=(reports.starved(0),), best=None))
    follow(tmp_path / "b", starving)
    assert kept.lines[-1][0] == 1 and kept.lines[-1][1]["text/kept"] == 3


@pytest.mark.parametrize("fails", ["start", "log", "finish"])
def test_a_tracker_that_fails_is_one_note_is_counted_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    monkeypatch.setattr(tracking, "_tracker", lambda *_: Kept(fails))
    record = written(tmp_path, reports.run_record())
    before = (tmp_path / "run.json").read_bytes()
    heard = follow(tmp_path, record)
    assert heard.rounds == [0, 1, 2]
    said = [note for note in heard.notes if note.startswith("Tracking by tensorboard failed: ")]
    assert len(said) == 1 and len(heard.notes) == 2 and f"no network to {fails}." in said[0]
    held = read_record(tmp_path / "track/tensorboard.json", TrackRecord)
    assert (held.rounds, held.missed) == (3, 0 if fails == "finish" else 3)
    assert (tmp_path / "run.json").read_bytes() == before
    assert onward(tmp_path).endswith(" --track tensorboard")


def test_a_launched_run_goes_on_with_as_many_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert onward(tmp_path) == f"steerheal run --resume {tmp_path}"
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    wanted = f"torchrun --nproc-per-node 4 -m steerheal run --resume {tmp_path}"
    assert onward(tmp_path) == wanted


def test_every_tracker_finds_the_run_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def fake(name: str) -> type[Kept]:
        class Fake(Kept):
            def __init__(self, *values: Any, **named: Any) -> None:
                super().__init__()
                asked.append((name, values, named))

        return Fake

    for kind in ("TensorBoard", "WandB", "Trackio", "MLflow"):
        monkeypatch.setattr(tracking, f"{kind}Tracker", fake(kind.lower()))
    record = written(tmp_path, reports.run_record())
    for name in extras.TRACKERS:
        for _ in range(2):
            with tracking.tracked(name, plan(tmp_path), Heard()) as listener:
                listener.round_done(record.rounds[0])
                listener.round_done(record.rounds[1])
                listener.note("so that it is opened")
    held = {name: read_record(tmp_path / f"track/{name}.json", TrackRecord).id
            for name in extras.TRACKERS}  # fmt: skip
    first, again = asked[::2], asked[1::2]
    assert [name for name, *_ in first] == list(extras.TRACKERS)
    assert first[:3] == again[:3]
    assert first[0][1] == ("tensorboard", tmp_path / "track")
    assert first[1][2]["id"] == held["wandb"] and first[1][2]["resume"] == "allow"
    # MLflow names a run itself.
    assert first[3][2]["run_id"] is None and again[3][2]["run_id"] == held["mlflow"] == "own"


def test_accelerates_trackers_take_what_they_are_given(tmp_path: Path) -> None:
    for name in extras.TRACKERS:
        assert tracking._tracker(name, tmp_path, "known").name == name


@pytest.mark.parametrize("name", extras.TRACKERS)
def test_what_is_not_installed_is_refused_with_the_line_that_installs_it(
    name: extras.Tracker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(extras.EXTRAS, extras.TRACKERS[name], ("no_such_package",))
    with pytest.raises(SystemExit) as stop:
        main(["run", "love", "--track", name])
    said = " ".join(capsys.readouterr().err.split())
    assert stop.value.code == 2
    assert f"pip install 'steerheal[{extras.TRACKERS[name]}]'" in said


def test_nothing_is_tracked_unless_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[object] = []
    monkeypatch.setattr(
        "steerheal.pipeline.run.run", lambda *_, listener, **__: heard.append(listener)
    )
    monkeypatch.setitem(extras.EXTRAS, "track", ())
    monkeypatch.setattr(tracking.Tracking, "ended", lambda _: None)
    for more in ((), ("--track", "tensorboard")):
        main(["run", "love", "--runs", str(tmp_path), "--name", "a", *more])
    assert [type(item).__name__ for item in heard] == ["Console", "Tracking"]
    assert not (tmp_path / "a" / "track").exists()


@needs_events
def test_tensorboard_reads_back_every_scalar(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    record = written(tmp_path, reports.run_record())
    follow(tmp_path, record, only=1)
    follow(tmp_path, record)
    events = accumulator.EventAccumulator(str(tmp_path / "track/tensorboard"))
    events.Reload()
    loss = events.Scalars("heal/ce")
    steps = [step for row in record.rounds for step in row.heal.steps]
    assert [item.value for item in loss] == pytest.approx([step.ce for step in steps])
    assert [item.step for item in loss] == [17 * n + 1 + k for n in range(3) for k in range(16)]
    trait = events.Scalars("healed/trait")
    assert [item.value for item in trait] == pytest.approx(
        [row.healed.trait.value for row in record.rounds]
    )
    assert [item.step for item in trait] == [17, 34, 51]
