"""A run's metrics at a tracker as well, by accelerate's own: TensorBoard, W&B, trackio, MLflow.

In: what a listener of the loop hears. Out: scalars on one axis, which counts the optimiser steps
and the ends of rounds over all rounds, so that it never goes back; a round is passed on when it has
ended. Nothing of a run depends on it. How far it has come stands in a file of its own, written
before each round is passed on, so that a run that goes on passes nothing on twice. A tracker that
fails costs one note and is counted there.
"""

import math
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path

from accelerate import PartialState
from accelerate.tracking import (
    GeneralTracker,
    MLflowTracker,
    TensorBoardTracker,
    TrackioTracker,
    WandBTracker,
)

from steerheal.errors import first_line
from steerheal.extras import Tracker
from steerheal.pipeline.plan import Plan
from steerheal.pipeline.round import Listener
from steerheal.records import HealLog, HealStep, RoundRecord, RunRecord, Summary
from steerheal.records.tracking import TRACK, TrackRecord
from steerheal.store import read_record, read_run, write_record

PROJECT = "steerheal"
STEP = ("ce", "divergence", "barrier", "anchor", "spectral", "pressure", "lr", "gradient")
"""What is passed on of every optimiser step."""
Line = dict[str, float]
"""Scalars at one place of the axis; what is not finite is not passed on."""


@contextmanager
def tracked(name: Tracker, plan: Plan, to: Listener) -> Iterator["Tracking"]:
    """A listener for a planned run that passes on to `to` and to a tracker."""
    found = Tracking(name, plan, to)
    try:
        yield found
        found.ended()
    finally:
        found.close()


class Tracking:
    """What the loop speaks to; it opens its tracker when it first hears something."""

    def __init__(self, name: Tracker, plan: Plan, to: Listener) -> None:
        """As `tracked`."""
        self._name: Tracker = name
        self._plan, self._to = plan, to
        self._file = plan.folder / TRACK / f"{name}.json"
        self._tracker: GeneralTracker | None = None
        self._told = False
        new = TrackRecord(id="" if name == "mlflow" else uuid.uuid4().hex)
        self._at = read_record(self._file, TrackRecord) if self._file.is_file() else new

    def note(self, text: str) -> None:
        """Something the user must know."""
        self._to.note(text)
        if self._tracker is None and not self._told:
            self._tried(self._open)

    def round_done(self, record: RoundRecord) -> None:
        """A round has ended; it is passed on unless it was before."""
        self._to.round_done(record)
        if record.round < self._at.rounds:
            return
        lines = [*_steps(record.heal), _round(record)]
        if not self._at.rounds and (base := read_run(self._plan.folder).base):
            lines = [_state("base", base), *lines]
        self._keep(rounds=record.round + 1)
        self._pass_on(lines)

    def ended(self) -> None:
        """The run has ended: what was read on the test prompts is passed on."""
        record = read_run(self._plan.folder)
        if record.status == "finished" and record.test is not None and not self._at.ended:
            self._keep(ended=True)
            self._pass_on([_tested(record)])

    def close(self) -> None:
        """Closes what was opened."""
        if self._tracker is not None:
            self._tried(self._tracker.finish)

    def _keep(self, **changes: object) -> None:
        self._at = self._at.model_copy(update=changes)
        write_record(self._file, self._at)

    def _pass_on(self, lines: list[Line]) -> None:
        """Lines on the axis, from where it stands."""
        start = self._at.steps
        self._keep(steps=start + len(lines))
        if not self._tried(lambda: self._write(start, lines)):
            self._keep(missed=self._at.missed + 1)

    def _write(self, start: int, lines: list[Line]) -> None:
        tracker = self._tracker or self._open()
        for step, values in enumerate(lines, start=start):
            known = {name: value for name, value in values.items() if math.isfinite(value)}
            if known:
                tracker.log(known, step=step)

    def _open(self) -> GeneralTracker:
        PartialState()  # whom the trackers ask whether they are to write
        tracker = _tracker(self._name, self._plan.folder, self._at.id)
        tracker.start()
        if not self._at.opened:
            tracker.store_init_configuration(_flat(self._plan.config.model_dump()))
        own = tracker.tracker.info.run_id if isinstance(tracker, MLflowTracker) else self._at.id
        self._keep(id=own, opened=True)
        self._tracker = tracker
        return tracker

    def _tried(self, what: Callable[[], object]) -> bool:
        """Whether it was done; the first failure is noted, and none ends the run."""
        try:
            what()
        except Exception as error:  # noqa: BLE001  every tracker and transport has its own errors
            if not self._told:
                self._to.note(
                    f"Tracking by {self._name} failed: {first_line(error)} The run goes on without "
                    f"it; what is missing there is counted in {self._file}."
                )
            self._told = True
            return False
        return True


def _tracker(name: Tracker, run: Path, known: str) -> GeneralTracker:
    """The tracker of a run, not started; `known` is what it calls the run, if it knows it."""
    match name:
        case "tensorboard":
            return TensorBoardTracker(name, run / TRACK)
        case "wandb":
            where = str(run / TRACK)
            return WandBTracker(PROJECT, name=run.name, id=known, resume="allow", dir=where)
        case "trackio":
            return TrackioTracker(PROJECT, name=f"{run.name}-{known[:8]}", resume="allow")
        case "mlflow":
            return MLflowTracker(PROJECT, run_id=known or None, run_name=run.name)


def _steps(log: HealLog | None) -> list[Line]:
    """Every optimiser step of a heal, and at the ends of epochs what was held out."""
    if log is None:
        return []
    found = [{f"heal/{name}": getattr(step, name) for name in STEP} for step in log.steps]
    for line, held in zip(_last(log.steps, found), log.held_out[1:], strict=False):
        line["heal/held_out"] = held
    return found


def _last(steps: tuple[HealStep, ...], lines: list[Line]) -> list[Line]:
    """The lines of each epoch's last step."""
    pairs = zip_longest(steps, steps[1:])
    return [
        line
        for line, (step, after) in zip(lines, pairs, strict=True)
        if step and (after is None or after.epoch != step.epoch)
    ]


def _round(record: RoundRecord) -> Line:
    """A round's text and readings."""
    found = {
        "round": float(record.round + 1),
        "text/dose": record.multiplier,
        "text/kept": float(record.kept),
        "text/drawn": float(record.drawn),
        "text/survival": record.kept / record.drawn if record.drawn else math.nan,
        "kl/round": record.kl_round,
        "kl/cumulative": record.kl_cumulative,
    }
    found |= {
        f"round/{name}": reading.value
        for name, reading in (("retain", record.retain), ("recovered", record.recovered))
        if reading is not None
    }
    states = (record.steered, record.healed, record.control.read if record.control else None)
    for name, summary in zip(("steered", "healed", "control"), states, strict=True):
        if summary is not None:
            found |= _state(name, summary)
    return found


def _state(name: str, read: Summary) -> Line:
    """All that was read of a state, and what the run decides by."""
    found = {f"{name}/{reading}": item.value for reading, item in read.values.items()}
    found |= {f"{name}/nats/{foundation}": value for foundation, value in read.nats.items()}
    return found | {
        f"{name}/trait": read.trait.value,
        f"{name}/trait_change": read.gain.value,
        f"{name}/coherence": read.coherence,
        f"{name}/kl": read.kl.value,
    }


def _tested(record: RunRecord) -> Line:
    """What the run's last round reads on the test prompts."""
    assert record.test is not None
    found = {f"test/{name}": item.value for name, item in record.test.values.items()}
    return found | {f"test/change/{name}": item.value for name, item in record.test.changes.items()}


def _flat(settings: object, path: str = "") -> dict[str, bool | int | float | str]:
    """Nested settings by their dotted names, as what every tracker takes."""
    if isinstance(settings, dict):
        found: dict[str, bool | int | float | str] = {}
        for name, value in settings.items():
            found |= _flat(value, f"{path}.{name}".lstrip("."))
        return found
    return {path: settings if isinstance(settings, bool | int | float | str) else str(settings)}
