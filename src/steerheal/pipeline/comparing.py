"""A comparison from its settings to its record: arms over seeds, whose stages are shared.

Every arm of every seed has a folder in the comparison's. What is finished is found again, so that a
killed comparison goes on where it was, and of several arms only one that is new is made.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from steerheal.config import RunConfig
from steerheal.config.comparing import ArmSettings, CompareSettings, of_arm
from steerheal.console import Console
from steerheal.errors import UserError
from steerheal.measure.readings import table
from steerheal.models.engines.engine import find
from steerheal.models.model import ChatModel
from steerheal.personas import Persona
from steerheal.pipeline.arms.judged import judged
from steerheal.pipeline.arms.reading import Read, Reads, kind_of, read, refuse_unused
from steerheal.pipeline.arms.serving import Serving
from steerheal.pipeline.claims import claimed
from steerheal.pipeline.jobs import Workers
from steerheal.pipeline.judging import Judging, refuse_itself, refuse_unsure, release
from steerheal.pipeline.kept import kept
from steerheal.pipeline.plan import agreed
from steerheal.pipeline.run import Loads, judge_of, opened, refuse_engine
from steerheal.pipeline.stage_store import Store, sweep, sweep_unfinished
from steerheal.pipeline.stages import Stages
from steerheal.pipeline.standing import Standing
from steerheal.pipeline.surroundings import environment, notes
from steerheal.records import StageMark
from steerheal.records.comparing import CompareRecord
from steerheal.store import COMPARE, read_record, write_record
from steerheal.tables import OWN_ENGINE

Notify = Callable[[StageMark], None]
"""Hears of finished stages."""


@dataclass(frozen=True)
class Plan:
    """What is to be compared, agreed with what the folder holds."""

    folder: Path
    config: RunConfig
    settings: CompareSettings
    arms: tuple[ArmSettings, ...]
    persona: Persona
    command: str
    share: str = ""
    """URL of where stages are shared with other machines; empty for nowhere."""
    held: CompareRecord | None = None
    """What the folder holds."""

    @property
    def seeds(self) -> range:
        """From the run's own up."""
        return range(self.config.seed, self.config.seed + self.settings.seeds)

    @property
    def answered(self) -> Persona:
        """The persona with the prompts that every state answers as those to be evaluated."""
        if self.settings.read_on == "evaluate":
            return self.persona
        return self.persona.model_copy(update={"prompts": self.persona.prompts.exchanged()})

    def agreed(self, held: CompareRecord) -> "Plan":
        """The plan with the arms and seeds that the folder's record has as well.

        Raises:
            UserError: it is of other settings, another persona, or has another arm of a name.
        """
        now = {"config": self.config, "persona": self.persona, "settings": self.settings}
        config = agreed(self.folder, "comparison", held.model_dump(mode="json"), now, grows="seeds")
        arms = {arm.arm.name: arm.arm for arm in held.arms}
        for arm in self.arms:
            if arms.setdefault(arm.name, arm) != arm:
                raise UserError(
                    f"{self.folder} holds another arm {arm.name}: rename this one, or give this "
                    "comparison another --name."
                )
        most = max(self.settings.seeds, held.settings.seeds)
        settings = self.settings.model_copy(update={"seeds": most})
        return replace(self, config=config, settings=settings, arms=tuple(arms.values()), held=held)


@contextmanager
def begun(plan: Plan) -> Iterator[Plan]:
    """The plan, whose folder is this process's own meanwhile.

    Raises:
        UserError: the folder holds another comparison, or another process is at work in it.
    """
    with claimed(plan.folder) as folder:
        file = folder / COMPARE
        if file.is_file():
            plan = plan.agreed(read_record(file, CompareRecord))
        _refuse_unfit(plan)
        yield plan


def _refuse_unfit(plan: Plan) -> None:
    """Refuses arms and readings that cannot be compared.

    Raises:
        UserError: which, and what there is.
    """
    names, engine = [arm.name for arm in plan.arms], find(plan.config.sampling.engine)
    asked, have = plan.config.measure.prompts, len(plan.answered.prompts.evaluate)
    if plan.settings.read_on == "test" and asked > have:
        raise UserError(
            f"--read-on test: {plan.persona.name} has {have} test prompts, fewer than "
            f"--measure.prompts {asked}. Ask for fewer, or give the persona more."
        )
    for setting in ("ours", "against"):
        name = getattr(plan.settings, setting)
        if name not in names:
            raise UserError(f"--{setting} {name} is none of the arms: {', '.join(names)}.")
    for arm in plan.arms:
        refuse_unused(arm)
        if kind_of(arm).mixed and not engine.hooks:
            raise UserError(
                f"Arm {arm.name} is made of several forwards in one batch, which --engine "
                f"{plan.config.sampling.engine} cannot write. Use --engine {OWN_ENGINE}, or name "
                "the others with --only."
            )
        refuse_engine(of_arm(plan.config, arm))
    fit = [entry for entry in table.entries() if entry.of is not None or entry.spread is not None]
    for setting, kind in (("trait", "trait"), ("damage", "coherence")):
        name = getattr(plan.settings, setting)
        known = [e.name for e in fit if e.kind == kind and (kind == "trait" or e.damage)]
        if name not in known:
            raise UserError(f"--{setting} {name} is none of the readings: {', '.join(known)}.")
        if table.listed([name])[0].judged and not plan.config.judge:
            raise UserError(
                f"--{setting} {name} is read by a judge: name another chat model with --judge."
            )


class SeedJob(NamedTuple):
    """Every arm at one seed, made and read into the comparison's folder."""

    plan: Plan
    """With the instrument that all seeds are read with."""
    seed: int

    @property
    def name(self) -> str:
        """The seed's."""
        return f"seed {self.seed}"

    def do(self, console: Console) -> None:
        """Makes what is not there yet; what it reads lies in finished stages.

        Raises:
            UserError: as `compare` does.
        """
        with kept.lent() as load:
            chat, _ = opened(self.plan.config, load)
            serving = Serving(self.seed)
            for arm in self.plan.arms:
                console.note(arm.name)
                _read(self.plan, chat, console, arm, serving)


def compare(plan: Plan, console: Console, workers: Workers | None = None) -> CompareRecord:
    """Makes, reads and compares what is not there yet; the record is readable at any moment.

    Args:
        plan: What is compared.
        console: Who hears how it goes.
        workers: Who make the seeds beforehand; this process makes what is still missing then.

    Raises:
        UserError: a setting that the model refuses, or another model than the record's.
    """
    try:
        judge = judge_of(plan.config, console)
        if judge is not None:
            refuse_unsure(plan.settings.damage, judge)
        with kept.lent() as load:
            plan, record = _started(plan, console, load, judge)
            made = set[int]()
            if workers is not None:
                made = _shared_out(plan, record, workers, console)
            chat, _ = opened(plan.config, load)
            record, reads = _read_all(plan, chat, record, console, made)
            del chat
        if judge is not None:
            kept.forget()
            release()
            reads = _judged(plan, reads, judge, console)
            axis = plan.persona.axis
            record = _with(record, Standing(plan.arms, plan.settings, axis, reads))
        record = record.model_copy(update={"status": "finished"})
        _write(plan, record)
        return record
    finally:
        kept.forget()


def _started(
    plan: Plan, console: Console, load: Loads, judge: Judging | None
) -> tuple[Plan, CompareRecord]:
    """The record that names what is compared, and the plan with the instrument that reads it."""
    chat, config = opened(plan.config, load)
    if judge is not None:
        refuse_itself(config.judge, judge.key, chat.fingerprint)
    plan = replace(plan, config=config)
    surroundings = environment(chat, config)
    if plan.held is not None:
        before = plan.held.environment["fingerprint"]
        if before != chat.fingerprint:
            raise UserError(
                f"{plan.folder} holds a comparison of another model ({before} there, "
                f"{chat.fingerprint} here). Give this one another --name."
            )
    sweep_unfinished(plan.folder.parent)
    sweep(plan.folder)
    record = CompareRecord(
        status="running",
        name=plan.folder.name,
        command=plan.command,
        settings=plan.settings,
        config=config,
        persona=plan.persona,
        environment=surroundings,
        notes=notes(chat, config.heal),
        judge=judge and judge.found,
    )
    _write(plan, record)
    first = _stages(plan, chat, console, plan.seeds[0], "base").measuring()
    instrument = first.config.measure.instrument
    return replace(plan, config=first.config), record.model_copy(update={"instrument": instrument})


def _shared_out(plan: Plan, record: CompareRecord, workers: Workers, console: Console) -> set[int]:
    """Has the workers make every seed that is not whole, while this process holds no model.

    Returns:
        The seeds that are whole then.
    """
    alone, made = replace(plan, folder=plan.folder.absolute(), held=None), set(plan.seeds)
    jobs = [SeedJob(alone, seed) for seed in plan.seeds if not _is_whole(plan, record, seed)]
    seeds = {job.name: job.seed for job in jobs}
    if jobs:
        kept.forget()
    for number, ended in enumerate(workers(jobs), 1):
        how = f"failed: {ended.error}" if ended.error else "made"
        console.note(f"{number} of {len(jobs)} · {ended.name} · {how}")
        if ended.trace:
            console.note(ended.trace)
        if ended.error:
            made.discard(seeds[ended.name])
    return made


def _is_whole(plan: Plan, record: CompareRecord, seed: int) -> bool:
    """Whether this code has read every arm at the seed before."""
    held = plan.held
    if held is None or held.environment.get("code") != record.environment["code"]:
        return False
    there = {arm.arm.name for arm in held.arms if seed in {item.seed for item in arm.spent}}
    return there >= {arm.name for arm in plan.arms}


def _read_all(
    plan: Plan, chat: ChatModel, record: CompareRecord, console: Console, made: Collection[int]
) -> tuple[CompareRecord, Reads]:
    """Every arm at every seed: points are recorded arm by arm, comparisons seed by seed.

    Of seeds that workers have made, an arm whose stages are all found is one line.
    """
    reads: dict[tuple[int, str], Read] = {}

    def standing() -> Standing:
        return Standing(plan.arms, plan.settings, plan.persona.axis, reads)

    for seed in plan.seeds:
        serving = Serving(seed)
        for arm in plan.arms:
            title = f"seed {seed} · {arm.name}"
            if seed in made:
                marks = list[StageMark]()
                found = _read(plan, chat, console, arm, serving, notify=marks.append)
                _tell(title, marks, console)
            else:
                console.note(title)
                found = _read(plan, chat, console, arm, serving)
            if found.unmade:
                console.note(f"{title} left out: {found.unmade}")
            reads[seed, arm.name] = found
            record = record.model_copy(update={"arms": tuple(standing().records())})
            _write(plan, record)
        record = _with(record, standing())
        _write(plan, record)
    return record, reads


def _judged(plan: Plan, reads: Reads, by: Judging, console: Console) -> Reads:
    """The same with what the judge makes of every answer: a stage per arm and seed."""
    found = dict(reads)
    with by.once() as judge:
        for (seed, arm), one in reads.items():
            if not one.points:
                continue
            title, marks = f"seed {seed} · {arm} · judging", list[StageMark]()
            store = _store(plan, console, seed, arm, notify=marks.append)
            found[seed, arm] = judged(one, store, judge, plan.persona, title=title, console=console)
            _tell(title, marks, console)
    return found


def _tell(title: str, marks: Sequence[StageMark], console: Console) -> None:
    """What became of an arm's stages: one line where all of them were found."""
    if all(mark.reused and not mark.made_again for mark in marks):
        seconds = sum(mark.seconds for mark in marks)
        console.note(f"{title} · all {len(marks)} stages found ({seconds:.1f} s saved)")
        return
    console.note(title)
    for mark in marks:
        console.stage_mark(mark)


def _read(
    plan: Plan,
    chat: ChatModel,
    console: Console,
    arm: ArmSettings,
    serving: Serving,
    *,
    notify: Notify | None = None,
) -> Read:
    """An arm at a seed; at the first one its last point answers the show prompts as well."""
    own = _stages(plan, chat, console, serving.seed, arm.name, notify=notify)
    return read(arm, plan.settings, own, serving, show=serving.seed == plan.seeds[0])


def _with(record: CompareRecord, standing: Standing) -> CompareRecord:
    """The record with what is known of the arms."""
    found, seen = standing.contrasts(), standing.sight()
    return record.model_copy(
        update={
            "arms": tuple(standing.records()),
            "contrasts": tuple(found),
            "compared": len(found),
            "sees": seen.sees if seen else (),
            "blind": seen.blind if seen else (),
            "persisted": tuple(standing.persisted()),
        }
    )


def _stages(
    plan: Plan,
    chat: ChatModel,
    console: Console,
    seed: int,
    arm: str,
    *,
    notify: Notify | None = None,
) -> Stages:
    """The run's stages at a seed, in an arm's folder; the console hears of them unless said."""
    store = _store(plan, console, seed, arm, notify=notify or console.stage_mark)
    config = plan.config.model_copy(update={"seed": seed})
    return Stages(config, plan.answered, chat, store, console)


def _store(plan: Plan, console: Console, seed: int, arm: str, *, notify: Notify) -> Store:
    """An arm's folder at a seed."""
    return Store(
        plan.folder.parent,
        f"{plan.folder.name}/seed-{seed}/{arm}",
        notify=notify,
        note=console.note,
        share=plan.share,
    )


def _write(plan: Plan, record: CompareRecord) -> None:
    """Rewrites the record, unless the one on disk holds more: that stays until caught up with."""
    if plan.held is None or _points(record) >= _points(plan.held):
        write_record(plan.folder / COMPARE, record)


def _points(record: CompareRecord) -> tuple[int, bool]:
    return sum(len(arm.points) for arm in record.arms), record.status == "finished"
