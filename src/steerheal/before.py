"""What can be refused before a model is loaded, and before torch is: one function per command.

A wrong file, a place that cannot be written or a package that is not there is told in a second
instead of after minutes of work.
"""

import json
import os
import tempfile
from pathlib import Path

from pydantic import BaseModel

from steerheal import prompts
from steerheal.asking import asked, is_run, refuse_unused
from steerheal.cli import (
    EvaluateCommand,
    ExportCommand,
    ReportCommand,
    RunCommand,
    SampleCommand,
    ScanCommand,
    SeedsCommand,
)
from steerheal.config import MeasureSettings, validated
from steerheal.errors import UserError
from steerheal.measure import guards, moralmaps, protocol, vignettes
from steerheal.personas import Persona, find
from steerheal.records import Evaluation
from steerheal.store import read_record, read_run

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def check(options: BaseModel) -> None:
    """Everything about a command's options that needs no model.

    Raises:
        UserError: what is wrong, and what to do.
    """
    match options:
        case RunCommand():
            _run(options)
        case EvaluateCommand():
            _evaluate(options)
        case ScanCommand():
            find(options.persona)
            prompts.first_contexts(options.contexts)
            _measured(options.measure())
            writable_folder(options.out or Path("runs"), "--out")
        case SampleCommand() | ReportCommand():
            read_run(options.run)
        case ExportCommand():
            _export(options)
        case SeedsCommand():
            for folder in options.runs:
                read_run(folder)
        case _:
            pass


def _run(options: RunCommand) -> None:
    if options.resume is not None:
        read_run(options.resume)
        writable_folder(options.resume, "--resume")
        return
    writable_folder(options.runs, "--runs")
    if options.name:
        writable_folder(options.runs / options.name, "--name")
    options.settings.model.template_text()
    prompts.first_contexts(options.settings.vector.contexts)
    _measured(options.settings.measure)


def _evaluate(options: EvaluateCommand) -> None:
    refuse_unused(options)
    for guard in options.guard:
        guards.known(guard)
    persona = find(options.persona)
    if options.against is not None and not options.against.is_file():
        read_run(options.against)
    if options.target is not None:
        _refuse_no_target(options.target)
        if is_run(options.target):
            record = read_run(options.target)
            persona = validated(Persona, record.persona, source=str(options.target))
    _measured(asked(options, persona).measure)
    if options.json_out is not None:
        writable_file(options.json_out, "--json")
        _refuse_other_file(options.json_out)


def _export(options: ExportCommand) -> None:
    read_run(options.run)
    out = options.out or options.run / f"export-{options.format}"
    if out.exists():
        raise UserError(f"{out} exists. Choose another folder with --out, or remove it.")
    writable_folder(out, "--out")


def _measured(settings: MeasureSettings) -> None:
    """Vignettes, wording and package of an evaluation. What lies on a hub is left for later."""
    if not settings.vignettes.startswith(vignettes.HUB):
        vignettes.chosen(settings)
    if settings.protocol:
        protocol.load(Path(settings.protocol))
    if settings.instrument == "moralmaps":
        moralmaps.refuse_absent(settings.think)


def _refuse_no_target(target: Path) -> None:
    """A target is a run folder, an adapter folder or a file of readings."""
    if target.is_file():
        read_record(target, Evaluation)
        return
    if is_run(target):
        read_run(target)
        return
    config, weights = (target / name for name in ADAPTER_FILES)
    if not config.is_file():
        what = "is no" if target.exists() else "does not exist, and is no"
        raise UserError(
            f"{target} {what} run folder, PEFT adapter folder or file saved with --json. A model "
            "goes after --model."
        )
    if not weights.is_file():
        raise UserError(f"The adapter in {target} has no {ADAPTER_FILES[1]}.")
    try:
        json.loads(config.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"Cannot read {config}: {error}.") from error


def _refuse_other_file(file: Path) -> None:
    """Readings replace readings, and no other file."""
    if not os.path.lexists(file):
        return
    if not file.is_file():
        raise UserError(f"--json: {file} is no plain file, and is not replaced.")
    try:
        read_record(file, Evaluation)
    except UserError as error:
        raise UserError(
            f"--json: {file} exists and holds no readings. Choose another file, or remove it."
        ) from error


def writable_file(file: Path, option: str) -> None:
    """Refuses a place where no file can be written.

    Raises:
        UserError: it is a folder, or lies in what is none or cannot be written.
    """
    if file.is_dir():
        raise UserError(f"{option}: {file} is a folder; give a file in it.")
    _refuse_closed(file.absolute().parent, option)


def writable_folder(folder: Path, option: str) -> None:
    """Refuses a place where no folder can be made or written.

    Raises:
        UserError: it is a file, or lies in what is no folder or cannot be written.
    """
    _refuse_closed(folder.absolute(), option)


def _refuse_closed(folder: Path, option: str) -> None:
    """Tries a file in the nearest folder that there is: permission bits do not tell everything."""
    try:
        nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        if not nearest.exists():
            raise UserError(f"{option}: {nearest} is a link that leads nowhere.")
        if not nearest.is_dir():
            raise UserError(f"{option}: {nearest} is a file, not a folder.")
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise UserError(f"{option}: {folder} cannot be written ({error.strerror}).") from error
