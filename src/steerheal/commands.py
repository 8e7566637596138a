"""What each command does; arguments come parsed, output goes through the console."""

import os
import platform
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import torch

from steerheal import prompts
from steerheal.cli import ExportCommand, ReportCommand, RunCommand, SampleCommand
from steerheal.closing import closing, onward
from steerheal.code import all_of_it, key_of
from steerheal.config import HealSettings, RunConfig, SamplingSettings
from steerheal.console import Console
from steerheal.errors import UserError, said
from steerheal.heal.adapter import target_names
from steerheal.heal.export import export_merged, export_peft
from steerheal.heal.reach import unreached
from steerheal.history import student_of
from steerheal.measure import instruments, protocol, vignettes
from steerheal.models.chat import prompt_notes
from steerheal.models.generate import Draw, generate
from steerheal.models.load import free_bytes, load
from steerheal.models.model import ChatModel
from steerheal.need import Size, memory_line
from steerheal.personas import Persona
from steerheal.pipeline import loop
from steerheal.pipeline.stage_store import Store, sweep, sweep_unfinished
from steerheal.pipeline.stages import Stages
from steerheal.plan import Plan, dated, fewer, planned
from steerheal.records import RunRecord
from steerheal.report.page import lacking, write_report
from steerheal.store import RUN, read_run, write_record

PACKAGES = ("steerheal", "torch", "transformers", "peft", "safetensors", "numpy", "scipy")


def run(options: RunCommand, console: Console) -> None:
    """`steerheal run`."""
    with planned(options, console) as plan:
        _run(plan, options, console)


def _run(plan: Plan, options: RunCommand, console: Console) -> None:
    folder, config = plan.folder, plan.config
    vignettes.chosen(config.measure)
    if config.measure.protocol:
        protocol.load(Path(config.measure.protocol))
    prompts.first_contexts(config.vector.contexts)
    config.model.template_text()
    chat = load(config.model)
    config = dated(config, chat.template.date)
    target_names(chat, config.heal)
    surroundings = environment(chat, config)
    changed = plan.held_against(surroundings)
    if left := sweep_unfinished(folder.parent) + sweep(folder):
        console.note(f"removed {left} half-made files or stages of a killed run")
    store = Store(folder.parent, folder.name, notify=console.stage_mark, note=console.note)
    record = RunRecord(
        status="running",
        name=folder.name,
        config=config.model_dump(mode="json"),
        command=plan.command,
        environment=surroundings,
        notes=(*notes(chat, config.heal), *test_note(plan.persona), *changed),
        persona=plan.persona.model_dump(mode="json"),
    )
    console.note(memory_line(size_of(chat), surroundings["dtype"], config, free_bytes(chat.device)))
    for note in record.notes:
        console.note(note)
    store.write_run(record)
    stages = Stages(config, plan.persona, chat, store, console)
    try:
        record = loop.run(stages, record, console, until=options.until)
    except BaseException as error:
        _leave_readable(store, error, console)
        raise
    if store.held is not None:
        raise UserError(fewer(folder, record, store.held))
    page = write_report(folder)
    closing(record, folder, page, console)


def _leave_readable(store: Store, error: BaseException, console: Console) -> None:
    """Marks the run's record, so that it says how it ended; its stages stay.

    The record of a run that was finished before stays as it is.
    """
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


def environment(chat: ChatModel, config: RunConfig) -> dict[str, str]:
    """What the run's numbers depend on beside its settings."""
    return {
        "model": chat.name,
        "fingerprint": chat.fingerprint,
        **({"thinking": mode} if (mode := chat.template.thinking()) else {}),
        "code": all_of_it(),
        "texts": key_of(instruments.texts(config.measure)),
        "architecture": type(chat.net).__name__,
        "device": str(chat.device),
        "dtype": str(chat.net.dtype).removeprefix("torch."),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        **{name: version(name) for name in PACKAGES},
    }


def size_of(chat: ChatModel) -> Size:
    """How large a model is; what it shares between parts counts once."""
    parameters = sum(weight.numel() for weight in chat.net.parameters())
    return Size(parameters, len(chat.blocks), chat.text_config.hidden_size)


BARRIERS_OWN = ("aggregate", "reference", "lam", "tau", "lam_power")
"""Settings of a heal that do nothing without a barrier."""


def notes(chat: ChatModel, heal: HealSettings) -> tuple[str, ...]:
    """What a reader of the record must know about the model and the settings."""
    found = []
    if not chat.system_role:
        found.append("The chat template has no system role: the persona opens the user turn.")
    if chat.ends.note:
        found.append(chat.ends.note)
    found += prompt_notes(chat)
    if sentence := unreached(chat, heal):
        found.append(sentence)
    usual = HealSettings()
    idle = [name for name in BARRIERS_OWN if getattr(heal, name) != getattr(usual, name)]
    if idle and heal.barrier == "nll":
        names = ", ".join(f"heal.{name}" for name in idle)
        found.append(f"{names} without effect: heal.barrier is nll. Set it to kl_rev or kl_fwd.")
    return tuple(found)


def test_note(persona: Persona) -> tuple[str, ...]:
    """What a reader must know of the prompts that the headline is read on."""
    pools = persona.prompts
    if pools.halved:
        return (
            f"The persona has no test prompts: every other one of its evaluation prompts is kept "
            f"for the headline ({len(pools.test)}), and {len(pools.evaluate)} are evaluated. Give "
            "it prompts.test to have more of both.",
        )
    if not pools.test:
        return (
            "The persona has no test prompts and fewer than four evaluation prompts to take some "
            "from: the headline is read on the prompts that chose the round.",
        )
    return ()


def report(options: ReportCommand, console: Console) -> None:
    """`steerheal report`."""
    page = write_report(options.run)
    for sentence in lacking(options.run, read_run(options.run)):
        console.note(f"missing from the report: {sentence}")
    console.say(str(page))


def sample(options: SampleCommand, console: Console) -> None:
    """`steerheal sample`."""
    record = read_run(options.run)
    chat, student, number = student_of(record, options.run, options.round, options.gate, console)
    prompts = options.prompt or tuple(record.persona["prompts"]["show"])
    sampling = SamplingSettings(tokens=options.tokens, temperature=options.temperature)
    draws = [Draw(prompt, seed=options.seed + i) for i, prompt in enumerate(prompts)]
    with console.stage("base", len(draws)) as progress:
        before = generate(chat, draws, sampling, progress=progress)
    name = f"round {number}, gate {options.gate:g}"
    after = before
    if options.gate != 0:
        with console.stage(name, len(draws)) as progress, student.entered(chat) as reader:
            after = generate(reader, draws, sampling, progress=progress)
    rows = [(a.prompt, a.text, b.text) for a, b in zip(before, after, strict=True)]
    console.side_by_side(rows, ("base", name))


def export(options: ExportCommand, console: Console) -> None:
    """`steerheal export`."""
    record = read_run(options.run)
    chat, student, number = student_of(record, options.run, options.round, options.gate, console)
    out = options.out or options.run / f"export-{options.format}"
    if out.exists():
        raise UserError(f"{out} exists. Choose another folder with --out, or remove it.")
    make = {"peft": export_peft, "merged": export_merged}[options.format]
    probes = [*record.persona["prompts"]["show"]]
    made = make(chat, student.history, out, probes)
    base = "" if options.gate else ", which is the base: the rounds change nothing in it"
    console.say(f"{made.what} of rounds 1 to {number} at gate {options.gate:g}{base}: {out}")
    console.say(
        f"largest logit difference to the gated model: {made.difference:.2e} "
        f"(logits reach {made.scale:.1f}; {len(probes)} prompts)"
    )
