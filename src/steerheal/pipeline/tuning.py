"""A search over a run's settings: cheap proxies first, then one round, read on evaluation prompts.

A trial is a run of one round without its control, in a folder of its own; trials share every stage
that they have in common, with each other and with runs beside the search. Before it samples any
steered text its direction must serve the trait, by the Fisher cosine, and before it trains check 1
must not speak against it. The persona's test prompts are never read: who runs the knee reads them.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steerheal import prompts, streams
from steerheal.config import RunConfig, SamplingSettings, merge, validated
from steerheal.config.tuning import TEXTS, TOKENS, TuneSettings
from steerheal.console import Console
from steerheal.errors import UserError, unknown
from steerheal.measure.fisher import ground
from steerheal.measure.readings import table
from steerheal.measure.spill import base_texts
from steerheal.models.model import ChatModel
from steerheal.numbers import shown
from steerheal.personas import Persona
from steerheal.pipeline import loop
from steerheal.pipeline.claims import claimed
from steerheal.pipeline.plan import Plan as RunPlan
from steerheal.pipeline.plan import agreed
from steerheal.pipeline.run import opened, started
from steerheal.pipeline.stage_store import Store, sweep_unfinished
from steerheal.pipeline.stages import Stages
from steerheal.pipeline.study import JOURNAL, Study
from steerheal.pipeline.surroundings import environment
from steerheal.records import Reading, RoundRecord
from steerheal.records.tuning import Trial, TuneRecord
from steerheal.report.front import front, knee
from steerheal.steer.rank import directions, ranked
from steerheal.store import read_record, write_record

RECORD = "tune.json"
CHEAP: dict[str, Any] = {"rounds": 1, "control": False, "read_prompted": False}
"""What a trial leaves out of a run."""
LEAST_COSINE = 0.5
"""Share of the best direction's cosine that a trial's direction needs."""
AGAINST = frozenset({"too weak", "too strong", "wrong sign"})
"""Outcomes of check 1 that speak against a trial; the others speak of how little was read."""
Bands = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Plan:
    """A search that is about to begin or to go on."""

    folder: Path
    config: RunConfig
    settings: TuneSettings
    bands: Bands
    """Ends of the bands, by how they were written."""
    persona: Persona
    command: str
    held: TuneRecord | None = None
    """What the folder holds."""


@contextmanager
def begun(plan: Plan) -> Iterator[Plan]:
    """The plan, whose folder is this process's own meanwhile.

    Raises:
        UserError: a reading that is none, another search's folder, or another process in it.
    """
    for setting, kind in (("trait", "trait"), ("damage", "coherence")):
        name = getattr(plan.settings, setting)
        known = [one.name for one in table.entries() if one.kind == kind and not one.judged]
        if name not in known:
            raise unknown(f"reading for --{setting}", name, known)
    with claimed(plan.folder) as folder:
        file = folder / RECORD
        yield _agreed(plan, read_record(file, TuneRecord)) if file.is_file() else plan


def _agreed(plan: Plan, held: TuneRecord) -> Plan:
    """The plan, going on with what its folder holds.

    Raises:
        UserError: that is a search with other settings or another persona.
    """
    now = {"config": plan.config, "persona": plan.persona, "settings": plan.settings}
    config = agreed(plan.folder, "search", held.model_dump(mode="json"), now, grows="trials")
    most = max(plan.settings.trials, held.settings.trials)
    settings = plan.settings.model_copy(update={"trials": most})
    return replace(plan, config=config, settings=settings, held=held)


def tune(plan: Plan, console: Console) -> TuneRecord:
    """Trial after trial; the record is readable at any moment.

    Raises:
        UserError: a setting that the model refuses, or another model than the record's.
    """
    chat, config = opened(plan.config)
    plan = replace(plan, config=config)
    surroundings = environment(chat, config)
    if plan.held and plan.held.environment["fingerprint"] != chat.fingerprint:
        raise UserError(f"{plan.folder} holds a search on another model. Give another --name.")
    sweep_unfinished(plan.folder.parent)
    study = Study(plan.folder, plan.settings, config.seed)
    if plan.held and len(study.trials()) < len(plan.held.trials):
        raise UserError(
            f"{plan.folder / JOURNAL} has fewer trials than {RECORD} beside it. Put it back, or "
            "give this search another --name."
        )
    record = TuneRecord(
        status="running",
        name=plan.folder.name,
        command=plan.command,
        settings=plan.settings,
        config=config,
        persona=plan.persona,
        environment=surroundings,
    )
    if plan.held and (plan.held.directions or plan.held.absent):
        kept = {"directions": plan.held.directions, "absent": plan.held.absent}
        record = record.model_copy(update=kept)
    else:
        record = told_apart(plan, chat, record, console)
    record = _written(plan, record, study.trials(), "running")
    bench = _Bench(plan, chat, record, console)
    while (asked := study.ask()) is not None:
        number, chosen = asked
        words = ", ".join(f"{name.partition('.')[2]} {value}" for name, value in chosen.items())
        console.note(f"trial {number + 1} of {plan.settings.trials} · {words}")
        trial = bench.tried(number, chosen)
        console.note(f"trial {number + 1} · {trial.reason or _in_words(trial)}")
        study.tell(trial)
        record = _written(plan, record, study.trials(), "running")
    return _written(plan, record, study.trials(), "finished")


def _in_words(trial: Trial) -> str:
    return f"trait {shown(trial.trait)}, damage {shown(trial.damage)}"


def _written(plan: Plan, record: TuneRecord, trials: list[Trial], status: str) -> TuneRecord:
    """The record as it has grown, on disk."""
    read = [(one.number, one.point) for one in trials if one.point is not None]
    points = [point for _, point in read]
    best = knee(points)
    grown = record.model_copy(
        update={
            "trials": tuple(trials),
            "front": tuple(read[i][0] for i in front(points)),
            "knee": None if best is None else read[best][0],
            "status": status,
        }
    )
    write_record(plan.folder / RECORD, grown)
    return grown


def chosen_config(config: RunConfig, chosen: Mapping[str, Any], bands: Bands) -> RunConfig:
    """The settings with a trial's choice in them.

    Raises:
        UserError: settings that do not go together.
    """
    values = config.model_dump()
    for name, value in {**chosen, "dose.start": "auto"}.items():
        group, _, setting = name.partition(".")
        own = bands[value] if name == "vector.band" else value
        values = merge(values, {group: {setting: own}})
    return validated(RunConfig, values, source="a trial")


def told_apart(plan: Plan, chat: ChatModel, record: TuneRecord, console: Console) -> TuneRecord:
    """The record with the Fisher cosine of every method on every band."""
    config, persona = plan.config, plan.persona
    contexts = prompts.first_contexts(config.vector.contexts)
    found, absent = [], {}
    for method in dict.fromkeys(plan.settings.methods):
        how = config.vector.model_copy(update={"method": method})
        console.note(f"directions of {method}")
        try:
            found.append((how, directions(chat, persona, contexts, how, bands=plan.bands)))
        except UserError as error:
            absent[method] = str(error)
    seed = streams.stream(config.seed, streams.CALIBRATION)
    asked, sampling = persona.prompts.train[:TEXTS], SamplingSettings(tokens=TOKENS)
    texts = base_texts(chat, asked, sampling, seed=seed)
    with console.stage("directions", len(found) * len(plan.bands)) as progress:
        rows = ranked(chat, ground(chat, persona, texts), found, progress) if found else []
    return record.model_copy(update={"directions": tuple(rows), "absent": absent})


@dataclass(frozen=True)
class _Bench:
    """What trials are made with."""

    plan: Plan
    chat: ChatModel
    record: TuneRecord
    """With the directions."""
    console: Console

    def tried(self, number: int, chosen: dict[str, Any]) -> Trial:
        """A trial, as far as it is worth going on with."""
        config = chosen_config(self.plan.config, chosen, self.plan.bands)
        trial = Trial(number=number, chosen=chosen)
        if reason := self._against(chosen["vector.method"], chosen["vector.band"]):
            return trial.model_copy(update={"reason": reason})
        return self._read(trial, config)

    def _against(self, method: str, band: str) -> str:
        """What the cosine of a method on a band says against it."""
        if method in self.record.absent:
            return f"{method} gives no direction: {self.record.absent[method]}"
        cosines = {(row.method, row.band): row.read.held_out for row in self.record.directions}
        own, best = cosines[method, band], max(one.value for one in cosines.values())
        if own.high > 0 and own.value >= LEAST_COSINE * best:
            return ""
        return f"its direction's cosine is {shown(own, 2)}, the best one's {best:.2f}"

    def _read(self, trial: Trial, config: RunConfig) -> Trial:
        """The trial with what its round gives, or why it was given up."""
        seen = self._round(trial.number, config, until="check1")
        saw = [one.outcome for one in seen.findings if one.check == "check 1"]
        if AGAINST & {*saw}:
            return trial.model_copy(update={"reason": f"check 1 saw: {saw[0]}"})
        done = self._round(trial.number, config, until=None)
        if done.healed is None:
            return trial.model_copy(update={"reason": f"its round was {done.outcome}"})
        asked, changes = self.plan.settings, done.healed.changes
        found = [changes.get(name) for name in (asked.trait, asked.damage)]
        if any(one is None or not math.isfinite(one.value) for one in found):
            return trial.model_copy(update={"reason": "its round could not be read"})
        (entry,) = table.listed([asked.damage])
        trait, damage = found
        assert damage is not None
        worse = damage if entry.damage > 0 else _turned(damage)
        return trial.model_copy(update={"trait": trait, "damage": worse})

    def _round(self, number: int, config: RunConfig, *, until: Any) -> RoundRecord:
        """The one round of a trial's run, from its stages."""
        folder = self.plan.folder / f"trial-{number:03}"
        name = f"{self.plan.folder.name}/{folder.name}"
        store = Store(
            self.plan.folder.parent, name, notify=self.console.stage_mark, note=self.console.note
        )
        # Without test prompts none are read: nothing may be chosen on them.
        pools = self.plan.persona.prompts.model_copy(update={"test": (), "halved": False})
        persona = self.plan.persona.model_copy(update={"prompts": pools})
        config = validated(RunConfig, merge(config.model_dump(), CHEAP), source="a trial")
        run = RunPlan(folder, config, persona, self.plan.command, None)
        record = started(run, self.chat, config, self.record.environment)
        stages = Stages(config, persona, self.chat, store, self.console)
        return loop.run(stages, record, self.console, until=until).rounds[0]


def _turned(reading: Reading) -> Reading:
    """The reading the other way round."""
    turned = {"value": -reading.value, "low": -reading.high, "high": -reading.low}
    return reading.model_copy(update=turned)
