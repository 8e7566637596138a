"""The command line: parses, calls, prints. Heavy imports wait until a command needs them."""

import importlib
import importlib.metadata
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from steerheal.bounds import (
    Amount,
    Count,
    CountOrNone,
    FilePath,
    FolderNameOrNone,
    Gate,
    Label,
    Place,
    RoundOrBest,
    Seed,
    Temperature,
    Text,
    Tokens,
    TokensOrNone,
    decoded,
)
from steerheal.config import (
    MOST_BYTES,
    MOST_LISTED,
    Conditions,
    Date,
    Doses,
    Instrument,
    MeasureSettings,
    ModelSettings,
    RunConfig,
    TemplateVariables,
    merge,
    problems,
    resolve,
)
from steerheal.console import Console
from steerheal.errors import Ended, UserError, said, unknown
from steerheal.helping import asked, page
from steerheal.line import As, Given, flag_of, read
from steerheal.personas import find

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
POSITIONAL = As(positional=True)
C = TypeVar("C", bound=BaseModel)


class Command(BaseModel):
    """Options of one command."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class RunCommand(Command):
    """Steers, filters, heals, folds, measures and loops; leaves a run folder and a report."""

    persona: Annotated[Place | None, POSITIONAL] = None
    """A built-in persona or a TOML file; the configuration's when none is given."""
    preset: Literal["quick", "standard", "full"] = "standard"
    """How much of everything: quick is minutes on a laptop."""
    config: FilePath | None = None
    """TOML file with settings, on top of the preset; options on the line win."""
    runs: FilePath = Path("runs")
    """Folder of run folders; finished stages are shared between the runs in it."""
    name: FolderNameOrNone = ""
    """Name of the run folder; made from the persona when not given."""
    resume: FilePath | None = None
    """A run folder to continue with its own settings; other settings are not allowed."""
    until: Literal["check1", "check2"] | None = None
    """End after this check of the first round: check1 says whether steering works, check2 whether
    its text can be filtered. The same command without it goes on from there."""
    line: Annotated[str, As(hidden=True)] = ""
    """The command line itself, recorded so that the run can be repeated."""
    settings: Annotated[RunConfig, As(name="")] = RunConfig()


class PersonasCommand(Command):
    """Shows the built-in personas."""

    name: Annotated[Place | None, POSITIONAL] = None
    """One persona, whole; also a TOML file, which is checked."""
    reverse: bool = False
    """Show it with its poles swapped."""


class ReportCommand(Command):
    """Writes a run's figures and report again."""

    run: Annotated[FilePath, POSITIONAL]
    """The run folder."""


class SampleCommand(Command):
    """Shows answers of a round's student beside the base's."""

    run: Annotated[FilePath, POSITIONAL]
    """The run folder."""
    round: RoundOrBest = 0
    """Round whose student answers, from 1; 0 is the run's best."""
    gate: Gate = 1.0
    """Dial on every adapter of the history; 0 is the base."""
    prompt: Annotated[tuple[Text, ...], Field(max_length=1_000)] = ()
    """What is asked, one or more; - takes a prompt from every line of standard input; the persona's
    show prompts when not given."""
    tokens: Tokens = 96
    """Longest answer, in tokens."""
    temperature: Temperature = 0.7
    """Softmax temperature; 0 is greedy."""
    seed: Seed = 0
    """Seed of both answers."""


class ExportCommand(Command):
    """Exports a run's history and prints the largest logit difference to the gated model."""

    run: Annotated[FilePath, POSITIONAL]
    """The run folder."""
    format: Literal["peft", "merged"] = "peft"
    """One rank-concatenated PEFT adapter, or the whole model with the history in its weights."""
    round: RoundOrBest = 0
    """Last round of the history, from 1; 0 is the run's best."""
    gate: Gate = 1.0
    """Dial on every adapter of the history; 0 is the base, whose adapter changes nothing."""
    out: FilePath | None = None
    """Where to; `<run>/export-<format>` when not given."""


class ReadCommand(Command):
    """What every command that reads a model asks for."""

    model: Place = ""
    """Base model: empty for the embedded one, a hub id, a local folder or a GGUF file."""
    template: Place = ""
    """Jinja file with a chat template, in place of the model's own."""
    template_vars: TemplateVariables = {}
    """Variables of the chat template, as NAME=VALUE or one JSON object."""
    date: Date = ""
    """Date, or date and time, that a chat template prints, such as 2026-03-14; empty is now."""
    instrument: Instrument = "auto"
    """likelihood, forced_choice, moralmaps, or auto: forced_choice if the base can answer it."""
    protocol: Place = ""
    """JSON file with forced_choice's wording; empty for the bundled one."""
    vignettes: Place = "everyday"
    """Bundled set (everyday, ai), a JSONL file in tinymfv's fields, or wassname/tiny-mfv:SET."""
    per_foundation: CountOrNone = 0
    """Vignettes per foundation, a stratified subset; 0 is all of them."""
    conditions: Conditions = ("other",)
    """Who acts in the vignettes: someone else, or the reader."""
    think: TokensOrNone = 128
    """forced_choice: tokens of thinking before the answer; 0 is none."""
    orders: Literal["two", "cyclic"] = "two"
    """forced_choice: the options forwards and backwards, or every option once at every position."""
    seed: Seed = 0
    """Seed of the free answers."""

    def asked_model(self) -> ModelSettings:
        """The options as settings of a model."""
        own = self.model_dump(include={"template", "template_vars", "date"})
        return ModelSettings(name=self.model, **own)

    def measure(self) -> MeasureSettings:
        """The options as settings of an evaluation."""
        named = ReadCommand.model_fields.keys() & MeasureSettings.model_fields.keys()
        return MeasureSettings.model_validate(self.model_dump(include=set(named)))


class EvaluateCommand(ReadCommand):
    """Reads a model, a run's round or a PEFT adapter; compares two readings with intervals.

    A run is read as it was read in its making, except for what is given here.
    """

    target: Annotated[FilePath | None, POSITIONAL] = None
    """A run folder, a PEFT adapter folder, or readings saved with --json; nothing is the model."""
    against: FilePath | None = None
    """Readings saved with --json, or a run folder's best round, to compare the target with."""
    round: RoundOrBest = 0
    """Round of the run, from 1; 0 is the run's best."""
    gate: Gate = 1.0
    """Dial on every adapter; 0 is the base."""
    persona: Place = "love"
    """Whose axis and prompts are read, when the target is not a run."""
    quick: bool = False
    """Read no more than preset quick does: fewer vignettes, fewer and shorter free answers."""
    prompts: Annotated[Count, Field(ge=2)] | None = None
    """The persona's evaluation prompts that are answered freely; 32, or the run's own."""
    tokens: Tokens | None = None
    """Longest free answer, in tokens; 48, or the run's own."""
    long_prompts: CountOrNone | None = None
    """Open prompts answered at length; 0 is none; 8, or the run's own."""
    json_prompts: CountOrNone | None = None
    """Requests for JSON that are answered freely; 0 is none; 12, or the run's own."""
    guard: Annotated[tuple[Label, ...], Field(max_length=MOST_LISTED)] = ()
    """Outside damage guards, as lm_eval:TASK."""
    json_out: Annotated[FilePath | None, As(name="json")] = None
    """Write the readings to this file as one JSON object."""


class ScanCommand(ReadCommand):
    """Tries bands of blocks times doses, and names the knee of trait against coherence."""

    persona: Annotated[Place, POSITIONAL] = "love"
    """A built-in persona or a TOML file."""
    reverse: bool = False
    """Swap the persona's poles."""
    bands: Annotated[tuple[Label, ...], Field(max_length=MOST_LISTED)] = (
        "0.2-0.4",
        "0.3-0.5",
        "0.4-0.6",
        "0.5-0.7",
        "0.45-0.55",
    )
    """Blocks that are steered, as fractions of depth."""
    doses: Doses = (0.5, 1.0, 1.5)
    """Multiples of the coefficient that reaches the target KL, band by band."""
    target_kl: Amount = 1.0
    """95th percentile over positions of KL(steered‖base) at dose 1, in nats: bands compare at equal
    KL. 0 switches it off: doses are then multiples of the raw vector."""
    contexts: Count = 64
    """Diverse user messages that the vector is averaged over."""
    prompts: Annotated[Count, Field(ge=2)] = 16
    """The persona's evaluation prompts that every point answers."""
    tokens: Tokens = 40
    """Longest free answer, in tokens."""
    per_foundation: CountOrNone = 4
    """Vignettes per foundation, a stratified subset; 0 is all of them."""
    out: FilePath | None = None
    """Folder for the record and the figure; runs/scan-<persona> when not given."""


class SeedsCommand(Command):
    """Reads runs that differ in their seed alone together: means with intervals over seeds."""

    runs: Annotated[tuple[FilePath, ...], POSITIONAL, Field(max_length=MOST_LISTED)]
    """Two or more run folders."""
    all: bool = False
    """Show every reading, not only the headline's."""


def main(
    arguments: Sequence[str] | None = None, *, works: Callable[[], None] = lambda: None
) -> None:
    """The `steerheal` command; `works` is called when it begins to do what was asked.

    Exit codes: 0 done, 2 the user must change something, 130 interrupted, 143 ended by SIGTERM,
    1 a bug.
    """
    argv = list(sys.argv[1:] if arguments is None else arguments)
    console = Console()
    try:
        _dispatch(argv, console, works)
    except UserError as error:
        console.error(str(error))
        sys.exit(2)
    except KeyboardInterrupt as error:
        console.error(said(error))
        sys.exit(128 + (error.args[0] if isinstance(error, Ended) else signal.SIGINT))


def _dispatch(argv: list[str], console: Console, works: Callable[[], None]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        console.say("usage: steerheal COMMAND [OPTIONS]\n")
        for name, text in SUMMARIES.items():
            console.say(f"  {name:10} {text}")
        console.say("\nsteerheal COMMAND --help shows a command's options.")
        return
    if argv[0] == "--version":
        console.say(importlib.metadata.version("steerheal"))
        return
    if argv[0] not in KINDS:
        raise unknown("command", argv[0], KINDS)
    if asked(argv[1:]) is not None:
        console.say(help_of(argv[0], argv[1:]))
        return
    options = parse(argv[0], argv[1:])
    # Late, since it reads records and files, which help and mistakes on the line do not need.
    importlib.import_module("steerheal.before").check(options)
    # The one late import: help, personas and mistakes on the line must not wait for torch.
    homes = {
        "personas": "steerheal.listing",
        "evaluate": "steerheal.reading",
        "scan": "steerheal.scan",
        "seeds": "steerheal.seeds",
    }
    module = importlib.import_module(homes.get(argv[0], "steerheal.commands"))
    handler = getattr(module, argv[0])
    works()
    handler(options, console)


def _parse(kind: type[C], given: Given, under: dict[str, Any] | None = None) -> C:
    """The line's words as a command, on top of the settings in `under`."""
    values = given.values if under is None else merge(under, given.values)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(
            "; ".join(problems(kind, error, lambda path: flag_of(kind, path)))
        ) from error


def parse_run(given: Given) -> RunCommand:
    """Options of `run`: the preset and the file give the defaults that the line overrides.

    Raises:
        UserError: unknown preset or persona, wrong file, a value out of its bounds.
    """
    early = {name: given.values.get(name) for name in ("preset", "config")}
    file = early["config"] and Path(early["config"])
    settings = resolve(early["preset"] or "standard", file)
    options = _parse(RunCommand, given, {"settings": settings.model_dump()})
    if options.resume is None:
        find(options.persona or options.settings.persona)
    else:
        _refuse_beside_resume(options.resume, given)
    return options


def _refuse_beside_resume(folder: Path, given: Given) -> None:
    """A run goes on with its own settings: what else is asked for would be silently ignored.

    Read off the line, since what is given may equal a default and still not be the run's.
    """
    besides = [
        word
        for path, words in given.words.items()
        if path not in (("resume",), ("until",))
        for word in words
    ]
    if besides:
        raise UserError(
            f"--resume continues {folder} with its own settings; given besides: "
            f"{shlex.join(besides)}. Leave that out, or start another run under another --name in "
            "the same --runs: stages that it shares with this one are not made again."
        )


def help_of(name: str, argv: Sequence[str]) -> str:
    """A command's help; that of `run` shows the values of the preset and the file before it."""
    if name != "run":
        return page(name, KINDS[name], argv, None)
    given = read(RunCommand, argv[: asked(argv)])
    preset, file = given.values.get("preset", "standard"), given.values.get("config")
    settings = resolve(preset, Path(file) if file else None)
    return page(name, RunCommand, argv, RunCommand(preset=preset, settings=settings))


def _with_piped(prompts: Sequence[str]) -> list[str]:
    """The prompts, with the lines of standard input where a hyphen stands.

    Raises:
        UserError: there is nothing to read.
    """
    text = decoded(sys.stdin.buffer.read(MOST_BYTES + 1), what="standard input", most=MOST_BYTES)
    piped = [line for line in text.split("\n") if line.strip()]
    if not piped:
        raise UserError("--prompt -: standard input holds no prompt.")
    return [line for prompt in prompts for line in (piped if prompt == "-" else [prompt])]


KINDS: dict[str, type[Command]] = {
    "run": RunCommand,
    "personas": PersonasCommand,
    "evaluate": EvaluateCommand,
    "scan": ScanCommand,
    "seeds": SeedsCommand,
    "sample": SampleCommand,
    "report": ReportCommand,
    "export": ExportCommand,
}


def parse(name: str, argv: Sequence[str]) -> Command:
    """A command's line as its options.

    Raises:
        UserError: an unknown option, a missing or wrong value.
    """
    given = read(KINDS[name], argv)
    if name == "run":
        line = shlex.join(["steerheal", "run", *argv])
        return parse_run(given).model_copy(update={"line": line})
    if "-" in given.values.get("prompt", ()):
        given.values["prompt"] = _with_piped(given.values["prompt"])
    return _parse(KINDS[name], given)
