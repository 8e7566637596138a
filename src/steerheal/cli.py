"""The command line: parses, calls, prints. Heavy imports wait until a command needs them."""

import argparse
import importlib
import importlib.metadata
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar, cast

import tyro
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from steerheal.config import Instrument, MeasureSettings, RunConfig, problems, resolve
from steerheal.console import Console
from steerheal.errors import UserError, unknown
from steerheal.steer.persona import find

SUMMARIES = {
    "run": "steer, filter, heal, fold, measure and loop; leaves a run folder and a report",
    "personas": "show the built-in personas, or one of them whole",
    "evaluate": "read a model, a run's round or a PEFT adapter",
    "scan": "which blocks to steer and how hard: bands times doses, trait against coherence",
    "seeds": "read runs that differ in their seed alone together",
    "sample": "answers of a round beside the base's",
    "report": "write a run's report again",
    "export": "a run's history as one PEFT adapter or a merged model",
}
Positional = tyro.conf.Positional
C = TypeVar("C", bound=BaseModel)


class Command(BaseModel):
    """Options of one command."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class RunCommand(Command):
    """Steers, filters, heals, folds, measures and loops; leaves a run folder and a report."""

    persona: Positional[str | None] = None
    """A built-in persona or a TOML file; the configuration's when none is given."""
    preset: Literal["quick", "standard", "full"] = "standard"
    """How much of everything: quick is minutes on a laptop."""
    config: Path | None = None
    """TOML file with settings, on top of the preset; options on the line win."""
    runs: Path = Path("runs")
    """Folder of run folders; finished stages are shared between the runs in it."""
    name: str = ""
    """Name of the run folder; made from the persona when not given."""
    resume: Path | None = None
    """A run folder to continue with its own settings; other settings are not allowed."""
    until: Literal["check1", "check2"] | None = None
    """End after this check of the first round: check1 says whether steering works, check2 whether
    its text can be filtered. The same command without it goes on from there."""
    line: Annotated[str, tyro.conf.Suppress] = ""
    """The command line itself, recorded so that the run can be repeated."""
    settings: Annotated[RunConfig, tyro.conf.arg(name="")] = RunConfig()


class PersonasCommand(Command):
    """Shows the built-in personas."""

    name: Positional[str | None] = None
    """One persona, whole; also a TOML file, which is checked."""
    reverse: bool = False
    """Show it with its poles swapped."""


class ReportCommand(Command):
    """Writes a run's figures and report again."""

    run: Positional[Path]
    """The run folder."""


class SampleCommand(Command):
    """Shows answers of a round's student beside the base's."""

    run: Positional[Path]
    """The run folder."""
    round: int = Field(default=0, ge=0)
    """Round whose student answers, from 1; 0 is the run's best."""
    gate: float = Field(default=1.0, ge=0)
    """Dial on every adapter of the history; 0 is the base."""
    prompt: tuple[str, ...] = ()
    """What is asked; the persona's show prompts when not given."""
    tokens: int = Field(default=96, ge=1)
    """Longest answer, in tokens."""
    temperature: float = Field(default=0.7, ge=0)
    """Softmax temperature; 0 is greedy."""
    seed: int = Field(default=0, ge=0)
    """Seed of both answers."""


class ExportCommand(Command):
    """Exports a run's history and prints the largest logit difference to the gated model."""

    run: Positional[Path]
    """The run folder."""
    format: Literal["peft", "merged"] = "peft"
    """One rank-concatenated PEFT adapter, or the whole model with the history in its weights."""
    round: int = Field(default=0, ge=0)
    """Last round of the history, from 1; 0 is the run's best."""
    gate: float = Field(default=1.0, gt=0)
    """Dial on every adapter of the history."""
    out: Path | None = None
    """Where to; `<run>/export-<format>` when not given."""


class ReadCommand(Command):
    """What every command that reads a model asks for."""

    model: str = ""
    """Base model: empty for the embedded one, a hub id, a local folder or a GGUF file."""
    instrument: Instrument = "auto"
    """likelihood, forced_choice, moralmaps, or auto: forced_choice if the base can answer it."""
    protocol: str = ""
    """JSON file with forced_choice's wording; empty for the bundled one."""
    vignettes: str = "everyday"
    """Bundled set (everyday, ai), a JSONL file in tinymfv's fields, or wassname/tiny-mfv:SET."""
    per_foundation: int = Field(default=0, ge=0)
    """Vignettes per foundation, a stratified subset; 0 is all of them."""
    conditions: tuple[Literal["other", "self"], ...] = Field(default=("other",), min_length=1)
    """Who acts in the vignettes: someone else, or the reader."""
    think: int = Field(default=128, ge=0)
    """forced_choice: tokens of thinking before the answer; 0 is none."""
    orders: Literal["two", "cyclic"] = "two"
    """forced_choice: the options forwards and backwards, or every option once at every position."""
    seed: int = Field(default=0, ge=0)
    """Seed of the free answers."""

    def measure(self, **others: int) -> MeasureSettings:
        """The options as settings of an evaluation."""
        named = ReadCommand.model_fields.keys() & MeasureSettings.model_fields.keys()
        shared = self.model_dump(include=set(named))
        return MeasureSettings.model_validate(shared | others)


class EvaluateCommand(ReadCommand):
    """Reads a model, a run's round or a PEFT adapter; compares two readings with intervals."""

    target: Positional[Path | None] = None
    """A run folder, a PEFT adapter folder, or readings saved with --json; nothing is the model."""
    against: Path | None = None
    """Readings saved with --json, or a run folder's best round, to compare the target with."""
    round: int = Field(default=0, ge=0)
    """Round of the run, from 1; 0 is the run's best."""
    gate: float = Field(default=1.0, ge=0)
    """Dial on every adapter."""
    persona: str = "love"
    """Whose axis and prompts are read, when the target is not a run."""
    guard: tuple[str, ...] = ()
    """Outside damage guards, as lm_eval:TASK."""
    json_out: Annotated[Path | None, tyro.conf.arg(name="json")] = None
    """Write the readings to this file as one JSON object."""


class ScanCommand(ReadCommand):
    """Tries bands of blocks times doses, and names the knee of trait against coherence."""

    persona: Positional[str] = "love"
    """A built-in persona or a TOML file."""
    reverse: bool = False
    """Swap the persona's poles."""
    bands: tuple[str, ...] = ("0.2-0.4", "0.3-0.5", "0.4-0.6", "0.5-0.7", "0.45-0.55")
    """Blocks that are steered, as fractions of depth."""
    doses: tuple[Annotated[float, Field(gt=0)], ...] = (0.5, 1.0, 1.5)
    """Multiples of the coefficient that reaches the target KL, band by band."""
    target_kl: float = Field(default=1.0, ge=0)
    """95th percentile over positions of KL(steered‖base) at dose 1, in nats: bands compare at equal
    KL. 0 switches it off: doses are then multiples of the raw vector."""
    contexts: int = Field(default=64, ge=1)
    """Diverse user messages that the vector is averaged over."""
    prompts: int = Field(default=16, ge=2)
    """The persona's evaluation prompts that every point answers."""
    tokens: int = Field(default=40, ge=1)
    """Longest free answer, in tokens."""
    per_foundation: int = Field(default=4, ge=0)
    """Vignettes per foundation, a stratified subset; 0 is all of them."""
    out: Path | None = None
    """Folder for the record and the figure; runs/scan-<persona> when not given."""


class SeedsCommand(Command):
    """Reads runs that differ in their seed alone together: means with intervals over seeds."""

    runs: Positional[tuple[Path, ...]]
    """Two or more run folders."""
    all: bool = False
    """Show every reading, not only the headline's."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The `steerheal` command.

    Exit codes: 0 done, 2 the user must change something, 130 interrupted, 1 a bug.
    """
    argv = list(sys.argv[1:] if arguments is None else arguments)
    console = Console()
    try:
        _dispatch(argv, console)
    except UserError as error:
        console.error(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        console.error("interrupted")
        sys.exit(130)


def _dispatch(argv: list[str], console: Console) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        console.say("usage: steerheal COMMAND [OPTIONS]\n")
        for name, text in SUMMARIES.items():
            console.say(f"  {name:10} {text}")
        console.say("\nsteerheal COMMAND --help shows a command's options.")
        return
    if argv[0] == "--version":
        console.say(importlib.metadata.version("steerheal"))
        return
    if argv[0] not in PARSERS:
        raise unknown("command", argv[0], PARSERS)
    options = PARSERS[argv[0]](argv[1:])
    # The one late import: help, personas and mistakes on the line must not wait for torch.
    homes = {
        "personas": "steerheal.listing",
        "evaluate": "steerheal.reading",
        "scan": "steerheal.scan",
        "seeds": "steerheal.seeds",
    }
    module = importlib.import_module(homes.get(argv[0], "steerheal.commands"))
    handler = getattr(module, argv[0])
    handler(options, console)


def _parse(kind: type[C], name: str, argv: list[str], default: C | None = None) -> C:
    try:
        return cast(C, tyro.cli(kind, prog=f"steerheal {name}", args=argv, default=default))
    except ValidationError as error:
        # tyro words the bounds of nested settings itself, and lets those of the outermost through.
        found = "; ".join(problems(kind, error))
        raise UserError(f"{found}. `steerheal {name} --help` shows what is allowed.") from error


def parse_run(argv: list[str]) -> RunCommand:
    """Options of `run`: the preset and the file give the defaults that the line overrides.

    Raises:
        UserError: unknown preset or persona, wrong file.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset", default="standard")
    early.add_argument("--config", type=Path)
    known, _ = early.parse_known_args(argv)
    settings = resolve(known.preset, known.config)
    default = RunCommand(preset=known.preset, config=known.config, settings=settings)
    options = _parse(RunCommand, "run", argv, default)
    if options.resume is None:
        find(options.persona or options.settings.persona)
    else:
        _refuse_beside_resume(argv)
    return options.model_copy(update={"line": shlex.join(["steerheal", "run", *argv])})


def _refuse_beside_resume(argv: list[str]) -> None:
    """A run goes on with its own settings: what else is asked for would be silently ignored.

    Read off the line, since what is given may equal a default and still not be the run's.
    """
    allowed = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--resume", "--until"):
        allowed.add_argument(name)
    known, besides = allowed.parse_known_args(argv)
    if besides:
        raise UserError(
            f"--resume continues {known.resume} with its own settings; given besides: "
            f"{shlex.join(besides)}. Leave that out, or start another run under another --name in "
            "the same --runs: stages that it shares with this one are not made again."
        )


PARSERS: dict[str, Callable[[list[str]], Command]] = {
    "run": parse_run,
    "personas": lambda argv: _parse(PersonasCommand, "personas", argv),
    "evaluate": lambda argv: _parse(EvaluateCommand, "evaluate", argv),
    "scan": lambda argv: _parse(ScanCommand, "scan", argv),
    "seeds": lambda argv: _parse(SeedsCommand, "seeds", argv),
    "sample": lambda argv: _parse(SampleCommand, "sample", argv),
    "report": lambda argv: _parse(ReportCommand, "report", argv),
    "export": lambda argv: _parse(ExportCommand, "export", argv),
}
