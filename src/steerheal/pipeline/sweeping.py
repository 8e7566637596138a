"""Many runs in one folder of runs, each by the ordinary pipeline, and one record of them all."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from steerheal.config import RunConfig
from steerheal.config.sweeping import Point
from steerheal.console import Console
from steerheal.errors import UserError
from steerheal.measure.compare import over_seeds
from steerheal.personas import find
from steerheal.pipeline.claims import claimed
from steerheal.pipeline.jobs import Job, Outcome, Workers, attempt
from steerheal.pipeline.kept import kept
from steerheal.pipeline.plan import begun
from steerheal.pipeline.run import run
from steerheal.pipeline.stages import all_of_it
from steerheal.records import Reading, RunRecord
from steerheal.records.sweeping import SweepRecord, SweptMean, SweptRun
from steerheal.report import control
from steerheal.report.words import chosen, tested, trait_label, trait_read
from steerheal.store import RUN, SWEEP, read_run, write_record


class RunJob(NamedTuple):
    """A run to make, or to go on with."""

    config: RunConfig
    runs: Path
    name: str
    command: str
    """The line that makes it alone."""
    share: str = ""
    """URL of where stages are shared with other machines; empty for nowhere."""

    def do(self, console: Console) -> None:
        """Makes it.

        Raises:
            UserError: as `run` does.
        """
        asked = begun(
            self.config, self.runs, self.name, until=None, command=self.command, console=console
        )
        with asked as plan, kept.lent() as load:
            run(plan, None, console, loads=load, share=self.share)


@dataclass(frozen=True)
class Sweep:
    """What is to be made."""

    folder: Path
    """The sweep's own, beside its runs'."""
    points: tuple[Point, ...]
    commands: tuple[str, ...]
    """The line that makes each run alone."""
    command: str
    """The sweep's own line."""
    share: str = ""
    """As a run's."""


def one_by_one(jobs: Sequence[Job], console: Console) -> Iterator[Outcome]:
    """Does the jobs in this process."""
    try:
        yield from map(partial(attempt, console=console), jobs)
    finally:
        kept.forget()


def sweep(asked: Sweep, workers: Workers, console: Console) -> SweepRecord:
    """Makes every run that is not finished; the record is readable at any moment.

    Raises:
        UserError: another process is at work on this sweep, or its folder cannot be written.
    """
    runs = asked.folder.parent
    with claimed(asked.folder):
        told = {point.name: told_of(point, _done(point, runs)) for point in asked.points}
        jobs = [
            RunJob(point.config, runs, point.name, command, asked.share)
            for point, command in zip(asked.points, asked.commands, strict=True)
            if told[point.name].status == "waiting"
        ]
        if len(jobs) < len(asked.points):
            console.note(f"{len(asked.points) - len(jobs)} of {len(asked.points)} runs are there")
        record = SweepRecord(status="running", name=asked.folder.name, command=asked.command)
        write = partial(_write, asked.folder, record, told)
        write("running")
        by_name = {point.name: point for point in asked.points}
        try:
            for ended in workers(jobs):
                point = by_name[ended.name]
                told[ended.name] = found = told_of(point, _held(runs / ended.name), ended)
                done = sum(row.status != "waiting" for row in told.values())
                how = f"failed: {found.error}" if found.error else "finished"
                console.note(f"run {done} of {len(told)} · {found.name} · {how}")
                if ended.trace:
                    console.note(ended.trace)
                write("running")
        except BaseException:
            write("interrupted")
            raise
        return write("finished")


def told_of(point: Point, record: RunRecord | None, ended: Outcome | None = None) -> SweptRun:
    """What a sweep says of a run."""
    config = point.config
    row = SweptRun(name=point.name, persona=config.persona, seed=config.seed, changes=point.changes)
    if ended is not None and ended.error:
        return row.model_copy(update={"status": "failed", "error": ended.error})
    return row if record is None else row.model_copy(update=_headline(record))


def _headline(record: RunRecord) -> dict[str, object]:
    """The numbers of the run's own headline."""
    made = sum(not mark.reused for mark in record.stages)
    found: dict[str, object] = {
        "status": "finished", "made": made, "shared": len(record.stages) - made,
    }  # fmt: skip
    row = chosen(record)
    if row is None or row.healed is None:
        why = Reading.unknown(record.outcome or "no round was healed")
        return found | {"trait": why, "kl": why, "coherence": why}
    read, net = trait_read(record, row), control.over_control(record, row)
    return found | {
        "round": row.round,
        "by": trait_label(read),
        "trait": read.gain,
        "net": Reading.unknown(control.lacking(row) or control.NONE) if net is None else net.gain,
        "kl": (tested(record, row) or row.healed).kl,
        "coherence": Reading(value=row.healed.coherence),
    }


def means_of(runs: Iterable[SweptRun]) -> tuple[SweptMean, ...]:
    """Means over seeds, of settings that finished at two or more."""
    alike: dict[str, list[SweptRun]] = {}
    for row in runs:
        if row.status == "finished":
            alike.setdefault(f"{row.persona} {json.dumps(row.changes)}", []).append(row)
    return tuple(
        SweptMean(
            persona=several[0].persona,
            changes=several[0].changes,
            seeds=len(several),
            trait=over_seeds([row.trait for row in several]),
            net=over_seeds([row.net for row in several]),
            kl=over_seeds([row.kl for row in several]),
            coherence=over_seeds([row.coherence for row in several]),
        )
        for several in alike.values()
        if len(several) > 1
    )


def _held(folder: Path) -> RunRecord | None:
    """A run's record; None where there is none that can be read, which the run itself tells of."""
    if not (folder / RUN).is_file():
        return None
    try:
        return read_run(folder)
    except UserError:
        return None


def _done(point: Point, runs: Path) -> RunRecord | None:
    """The record of a run that is finished, where this code and persona would make the same."""
    folder, config = runs / point.name, point.config
    record = _held(folder)
    if record is None or record.status != "finished":
        return None
    persona = find(config.persona, reverse=config.reverse)
    persona = persona.model_copy(update={"prompts": persona.prompts.with_test()})
    same = record.environment.get("code") == all_of_it() and record.persona == persona
    return record if same else None


def _write(
    folder: Path, record: SweepRecord, told: dict[str, SweptRun], status: str
) -> SweepRecord:
    record = record.model_copy(
        update={"status": status, "runs": tuple(told.values()), "means": means_of(told.values())}
    )
    write_record(folder / SWEEP, record)
    return record
