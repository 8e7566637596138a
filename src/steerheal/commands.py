"""What each command does; arguments come parsed, output goes through the console."""

import os
import platform
import shlex
from importlib.metadata import version
from pathlib import Path

import torch

from steerheal import loop, prompts
from steerheal.cli import ExportCommand, ReportCommand, RunCommand, SampleCommand
from steerheal.config import HealSettings, RunConfig, SamplingSettings, validated
from steerheal.console import Console
from steerheal.errors import UserError
from steerheal.heal.adapter import target_names
from steerheal.heal.export import export_merged, export_peft
from steerheal.history import student_of
from steerheal.measure import protocol, vignettes
from steerheal.models.generate import Draw, generate
from steerheal.models.load import load
from steerheal.models.model import ChatModel
from steerheal.records import RunRecord
from steerheal.report.page import conditions, headline, lacking, shown_differs, write_report
from steerheal.stages import Stages
from steerheal.state.fold import folded
from steerheal.steer.persona import Persona, find
from steerheal.store import Store, free_name, read_run, read_shown, sweep_unfinished

PACKAGES = ("steerheal", "torch", "transformers", "peft", "safetensors", "numpy", "scipy")


def run(options: RunCommand, console: Console) -> None:
    """`steerheal run`."""
    folder, config, persona, command = _planned(options, console)
    vignettes.chosen(config.measure)
    if config.measure.protocol:
        protocol.load(Path(config.measure.protocol))
    prompts.first_contexts(config.vector.contexts)
    config.model.template_text()
    chat = load(config.model)
    config = _dated(config, chat.template.date)
    target_names(chat, config.heal)
    if left := sweep_unfinished(folder.parent):
        console.note(f"removed {left} half-made stages of a killed run")
    store = Store(folder.parent, folder.name, notify=console.stage_mark)
    record = RunRecord(
        status="running",
        name=folder.name,
        config=config.model_dump(mode="json"),
        command=command,
        environment=environment(chat),
        notes=notes(chat, config.heal),
        persona=persona.model_dump(mode="json"),
    )
    for note in record.notes:
        console.note(note)
    store.write_run(record)
    stages = Stages(config, persona, chat, store, console)
    try:
        record = loop.run(stages, record, console, until=options.until)
    except BaseException as error:
        _leave_readable(store, error)
        if isinstance(error, KeyboardInterrupt):
            again = shlex.join(["steerheal", "run", "--resume", str(folder)])
            console.note(f"finished stages are kept; go on with: {again}")
        raise
    page = write_report(folder)
    _closing(record, folder, page, console)


def _planned(options: RunCommand, console: Console) -> tuple[Path, RunConfig, Persona, str]:
    """Run folder, settings, persona, and the command that repeats the run.

    A run that goes on keeps the persona of its record, whatever became of the file.

    Raises:
        UserError: the folder holds another run, or none to resume.
    """
    config = options.settings
    if options.persona is not None:
        config = config.model_copy(update={"persona": options.persona})
    if options.resume is not None:
        folder = options.resume
        old = read_run(folder)
        _refuse_going_back(folder, old, options)
        command = with_until(old.command, options.until)
        persona = validated(Persona, old.persona, source=str(folder))
        return folder, validated(RunConfig, old.config, source=str(folder)), persona, command
    persona = find(config.persona, reverse=config.reverse)
    config = _within_pools(config, persona, console)
    stem = Path(config.persona).stem + ("-reversed" if config.reverse else "")
    name = options.name or free_name(options.runs, stem)
    if Path(name).name != name:
        raise UserError(f"A run's name is one folder name, not {name!r}; --runs says where.")
    folder = options.runs / name
    if (folder / "run.json").exists():
        old = read_run(folder)
        before = validated(RunConfig, old.config, source=str(folder))
        # A run that began without a date goes on with the one that its template printed.
        config = config if config.model.date else _dated(config, before.model.date)
        if before != config:
            raise UserError(
                f"{folder} holds a run with other settings. Choose another --name, or continue "
                f"that one with `steerheal run --resume {folder}`."
            )
        _refuse_going_back(folder, old, options)
    return folder, config, persona, options.line


def _dated(config: RunConfig, date: str) -> RunConfig:
    """The settings with a date for the chat template; as they are where there is none."""
    if not date:
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"date": date})})


def _refuse_going_back(folder: Path, old: RunRecord, options: RunCommand) -> None:
    further = [row for row in old.rounds if row.outcome != "stopped"]
    if options.until is not None and further:
        raise UserError(
            f"{folder} holds a run that went further than --until {options.until}; its report "
            "shows what the checks saw. Choose another --name."
        )


def with_until(line: str, until: str | None) -> str:
    """A recorded command line that ends where this one does."""
    words = shlex.split(line)
    if "--until" in words:
        place = words.index("--until")
        del words[place : place + 2]
    words = [word for word in words if not word.startswith("--until=")]
    return shlex.join([*words, *(["--until", until] if until else [])])


def _within_pools(config: RunConfig, persona: Persona, console: Console) -> RunConfig:
    """The settings with no more prompts than the persona has, and a note when that cuts any."""
    have = len(persona.prompts.evaluate)
    if config.measure.prompts <= have:
        return config
    console.note(prompts.cut("measure.prompts", config.measure.prompts, persona.name, have))
    measure = config.measure.model_copy(update={"prompts": have})
    return config.model_copy(update={"measure": measure})


def _leave_readable(store: Store, error: BaseException) -> None:
    """Marks the run's record, so that it says how it ended; its stages stay."""
    stopped = isinstance(error, KeyboardInterrupt)
    record = read_run(store.folder)
    store.write_run(
        record.model_copy(
            update={
                "status": "interrupted" if stopped else "failed",
                "error": "interrupted by the user" if stopped else f"{error}",
            }
        )
    )


def _closing(record: RunRecord, folder: Path, page: Path, console: Console) -> None:
    """Headline, the demo's conditions, one before/after answer, and where the report is."""
    console.say("")
    console.say(headline(record))
    for condition in conditions(record, shown_differs(folder, record)):
        mark = {True: "✓", False: "✗", None: "?"}[condition.holds]
        console.say(f"{mark} {condition.text}   {condition.numbers}")
    if record.best_reason:
        console.say(f"best    {record.best_reason}")
    if record.best is not None:
        before = read_shown(folder, -1, "base").completions[0]
        after = read_shown(folder, record.best, "healed").completions[0]
        console.say(f"\nprompt  {before.prompt}")
        console.say(f"before  {before.text}")
        console.say(f"after   {after.text}")
    console.say(f"\nreport  {page}")


def environment(chat: ChatModel) -> dict[str, str]:
    """What the run's numbers depend on beside its settings."""
    return {
        "model": chat.name,
        "fingerprint": chat.fingerprint,
        **({"thinking": mode} if (mode := chat.template.thinking()) else {}),
        "architecture": type(chat.net).__name__,
        "device": str(chat.device),
        "dtype": str(chat.net.dtype).removeprefix("torch."),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        **{name: version(name) for name in PACKAGES},
    }


BARRIERS_OWN = ("aggregate", "reference", "lam", "tau", "lam_power")
"""Settings of a heal that do nothing without a barrier."""


def notes(chat: ChatModel, heal: HealSettings) -> tuple[str, ...]:
    """What a reader of the record must know about the model and the settings."""
    found = []
    if not chat.system_role:
        found.append("The chat template has no system role: the persona opens the user turn.")
    if chat.ends.note:
        found.append(chat.ends.note)
    if chat.template.date:
        found.append(f"The chat template prints the date: {chat.template.date} in all of this run.")
    if mode := chat.template.thinking():
        found.append(f"Thinking: {mode}.")
    usual = HealSettings()
    idle = [name for name in BARRIERS_OWN if getattr(heal, name) != getattr(usual, name)]
    if idle and heal.barrier == "nll":
        names = ", ".join(f"heal.{name}" for name in idle)
        found.append(f"{names} without effect: heal.barrier is nll. Set it to kl_rev or kl_fwd.")
    return tuple(found)


def report(options: ReportCommand, console: Console) -> None:
    """`steerheal report`."""
    page = write_report(options.run)
    for sentence in lacking(options.run, read_run(options.run)):
        console.note(f"missing from the report: {sentence}")
    console.say(str(page))


def sample(options: SampleCommand, console: Console) -> None:
    """`steerheal sample`."""
    record = read_run(options.run)
    chat, history, number = student_of(record, options.run, options.round, options.gate, console)
    prompts = options.prompt or tuple(record.persona["prompts"]["show"])
    if not all(prompt.strip() for prompt in prompts):
        raise UserError("An empty prompt was given; say what is asked after --prompt.")
    sampling = SamplingSettings(tokens=options.tokens, temperature=options.temperature)
    draws = [Draw(prompt, 0.0, options.seed + i) for i, prompt in enumerate(prompts)]
    with console.stage("base", len(draws)) as progress:
        before = generate(chat, draws, sampling, progress=progress)
    name = f"round {number}, gate {options.gate:g}"
    with console.stage(name, len(draws)) as progress, folded(chat, history):
        after = generate(chat, draws, sampling, progress=progress)
    rows = [(a.prompt, a.text, b.text) for a, b in zip(before, after, strict=True)]
    console.side_by_side(rows, ("base", name))


def export(options: ExportCommand, console: Console) -> None:
    """`steerheal export`."""
    record = read_run(options.run)
    chat, history, number = student_of(record, options.run, options.round, options.gate, console)
    out = options.out or options.run / f"export-{options.format}"
    if out.exists():
        raise UserError(f"{out} exists. Choose another folder with --out, or remove it.")
    make = {"peft": export_peft, "merged": export_merged}[options.format]
    probes = [*record.persona["prompts"]["show"]]
    made = make(chat, history, out, probes)
    console.say(f"{made.what} of rounds 1 to {number} at gate {options.gate:g}: {out}")
    console.say(
        f"largest logit difference to the gated model: {made.difference:.2e} "
        f"(logits reach {made.scale:.1f}; {len(probes)} prompts)"
    )
