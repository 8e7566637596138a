"""A planned run from the model's loading to the report, and its record however it ends."""

from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from steerheal import prompts, ranks
from steerheal.config import ModelSettings, RunConfig
from steerheal.console import Console
from steerheal.errors import UserError, said
from steerheal.heal.adapter import target_names
from steerheal.measure import protocol, vignettes
from steerheal.models.batch import free_bytes
from steerheal.models.engines import engine as engines
from steerheal.models.load import load
from steerheal.models.model import ChatModel
from steerheal.models.reordered import reorder
from steerheal.personas import Persona
from steerheal.pipeline import loop
from steerheal.pipeline.closing import closing, onward
from steerheal.pipeline.ends import Until
from steerheal.pipeline.forecast import told
from steerheal.pipeline.judgement import judged
from steerheal.pipeline.judging import Judging, examined, refuse_itself, release
from steerheal.pipeline.kept import kept
from steerheal.pipeline.need import memory_line
from steerheal.pipeline.plan import Plan, dated, fewer
from steerheal.pipeline.round import Listener
from steerheal.pipeline.stage_store import Store, sweep, sweep_unfinished
from steerheal.pipeline.stages import Stages
from steerheal.pipeline.surroundings import environment, notes, size_of, test_note
from steerheal.records import RunRecord
from steerheal.report.page import write_report
from steerheal.steer.methods.find import find as find_method
from steerheal.steer.teachers.find import find
from steerheal.store import RUN, read_run, write_record
from steerheal.tables import OBJECTIVES, OWN_ENGINE

Loads = Callable[[ModelSettings], ChatModel]
"""Gives the model that the settings name."""


def run(
    plan: Plan,
    until: Until | None,
    console: Console,
    *,
    loads: Loads | None = None,
    share: str = "",
    listener: Listener | None = None,
) -> None:
    """Runs a plan, or goes on with it, until the last round or the end of a check.

    Args:
        plan: What is run.
        until: The check after which it ends.
        console: Who hears how it goes.
        loads: Where its model comes from; it is loaded when not given.
        share: URL of where stages are shared with other machines; empty for nowhere.
        listener: Who hears of findings and finished rounds; the console when not given.

    Raises:
        UserError: a setting that the model refuses, or a record that this code cannot equal.
    """
    folder, config = plan.folder, plan.config
    judge = None if until else judge_of(config, console)
    chat, config = opened(config, loads)
    if judge is not None:
        refuse_itself(config.judge, judge.key, chat.fingerprint)
    surroundings = environment(chat, config)
    changed = plan.held_against(surroundings)
    if ranks.leads() and (left := sweep_unfinished(folder.parent) + sweep(folder)):
        console.note(f"removed {left} half-made files or stages of a killed run")
    store = Store(
        folder.parent, folder.name, notify=console.stage_mark, note=console.note, share=share
    )
    ranks.wait()  # until all have seen what the folder holds
    record = started(plan, chat, config, surroundings, changed)
    console.note(memory_line(size_of(chat), surroundings["dtype"], config, free_bytes(chat.device)))
    for note in record.notes:
        console.note(note)
    store.write_run(record)
    stages = Stages(config, plan.persona, chat, store, console)
    try:
        record = loop.run(stages, record, listener or console, until=until)
        if judge is not None and store.held is None:
            del chat, stages
            kept.forget()
            release()
            record = judged(record, store, judge, plan.persona, console)
            store.write_run(record.model_copy(update={"stages": tuple(store.marks)}))
    except BaseException as error:
        _leave_readable(store, error, console)
        raise
    if store.held is not None:
        raise UserError(fewer(folder, record, store.held))
    if ranks.leads():
        closing(record, folder, write_report(folder), console)


def judge_of(config: RunConfig, console: Console) -> Judging | None:
    """The judge that the settings name, while the run's own model is not in memory yet.

    Raises:
        UserError: it cannot be loaded, or is that model.
    """
    if not config.judge:
        return None
    refuse_itself(config.judge, config.judge, config.model.name)
    kept.forget()
    return examined(config.judge, config.model.device, console)


def started(
    plan: Plan,
    chat: ChatModel,
    config: RunConfig,
    surroundings: dict[str, str],
    changed: tuple[str, ...] = (),
) -> RunRecord:
    """The record of a run that begins."""
    return RunRecord(
        status="running",
        name=plan.folder.name,
        config=config,
        command=plan.command,
        environment=surroundings,
        notes=(*notes(chat, config.heal), *test_note(plan.persona), *changed),
        persona=plan.persona,
    )


def opened(config: RunConfig, loads: Loads | None = None) -> tuple[ChatModel, RunConfig]:
    """The model of a run, and its settings with the date that the model's template prints.

    Its layers read reordered weights from here on: nothing but a fold may write into them.

    Raises:
        UserError: a file, a name or a setting that cannot be used, or that the model refuses.
    """
    vignettes.chosen(config.measure)
    if config.measure.protocol:
        protocol.load(Path(config.measure.protocol))
    for table, name in config.named():
        table.find(name)
    paired = OBJECTIVES.find(config.heal.objective).paired
    if (paired or config.heal.subtracts_opposite) and not find(config.teacher).dosed:
        who = f"Objective {config.heal.objective}" if paired else "heal.subtract_text opposite"
        raise UserError(
            f"{who} holds what a vector writes against what it writes at the opposite dose, and "
            f"teacher {config.teacher} has no vector. Use --teacher vector, or "
            f"{'another objective' if paired else '--heal.subtract-text unsteered'}."
        )
    prompts.first_contexts(config.vector.contexts)
    config.model.template_text()
    refuse_engine(config)
    chat = (loads or load)(config.model)
    reorder(chat)
    engines.find(config.sampling.engine).refuse_model(chat)
    target_names(chat, config.heal)
    return chat, dated(config, chat.template.date)


def refuse_engine(config: RunConfig) -> None:
    """Looks whether the run's engine can write what the run has written.

    Raises:
        UserError: it cannot.
    """
    engine = engines.find(config.sampling.engine)
    engine.refuse(config)
    if engine.hooks:
        return
    method, teacher = config.vector.method, config.teacher
    if find_method(method).kind != "add":
        what = f"a vector of method {method}, which is not simply added"
    elif find(teacher).mixed:
        what = f"teacher {teacher}, whose logits are made of several forwards in one batch"
    else:
        return
    raise UserError(
        f"--engine {config.sampling.engine} has no hooks and cannot write as {what}. Use --engine "
        f"{OWN_ENGINE}."
    )


def plan(
    config: RunConfig,
    persona: Persona,
    console: Console,
    *,
    until: Until | None = None,
    done: Collection[tuple[int, str]] = (),
) -> None:
    """Says what a run with these settings will cost here, and leaves nothing.

    Args:
        config: Its settings.
        persona: Whose prompts are counted.
        console: Where it is said.
        until: The check after which it ends.
        done: Rounds and names of stages that it has already.

    Raises:
        UserError: what the run itself would refuse.
    """
    chat, config = opened(config)
    dtype = str(chat.net.dtype).removeprefix("torch.")
    console.note(memory_line(size_of(chat), dtype, config, free_bytes(chat.device)))
    told(chat, persona, config, until=until, done=done, console=console)


def _leave_readable(store: Store, error: BaseException, console: Console) -> None:
    """Marks the run's record, so that it says how it ended; its stages stay.

    The record of a run that was finished before stays as it is.
    """
    if not ranks.leads():
        return
    stopped = isinstance(error, KeyboardInterrupt)
    if stopped:
        console.note(f"finished stages are kept; go on with: {onward(store.folder)}")
    with suppress(UserError):  # a disk that refuses even this has been told of
        record = read_run(store.folder)
        if store.held is not None and record.status == "finished":
            console.note(f"the finished record in {store.folder} stays as it is")
            return
        status, why = ("interrupted", said(error)) if stopped else ("failed", f"{error}")
        write_record(store.folder / RUN, record.model_copy(update={"status": status, "error": why}))
