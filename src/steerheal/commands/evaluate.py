"""`steerheal evaluate`: reads a target with the chosen instrument, saves, shows and compares it."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from steerheal.bounds import (
    Count,
    CountOrNone,
    FilePath,
    Gate,
    Label,
    Place,
    RoundOrBest,
    Tokens,
)
from steerheal.commands.asking import Asked, asked, is_run
from steerheal.commands.command import POSITIONAL, ReadCommand
from steerheal.commands.refuse import refuse_unreadable, writable_file
from steerheal.config import MOST_LISTED, MeasureSettings, ModelSettings, validated
from steerheal.console import Console
from steerheal.errors import UserError
from steerheal.line import As, flag_of
from steerheal.measure import guards
from steerheal.numbers import shown
from steerheal.personas import Persona, find
from steerheal.records import FOUNDATIONS, Comparison, Evaluation, Scores, Summary
from steerheal.store import read_record, read_run, read_scores, write_record

if TYPE_CHECKING:
    from steerheal.measure.readings.table import Entry

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
BAR = 24
"""Width of the figure's bars, in characters."""


class EvaluateCommand(ReadCommand):
    """Reads a model, a run's round or a PEFT adapter; compares two readings with intervals.

    A run is read with the settings of its own readings, except for what is given here.
    """

    target: Annotated[FilePath | None, POSITIONAL] = None
    """A run folder, a PEFT adapter folder, or readings saved with --json; nothing is the model."""
    against: FilePath | None = None
    """Readings saved with --json, or a run folder's best round, to compare the target with."""
    round: RoundOrBest = 0
    """Round of the run, from 1; 0 is the run's best."""
    gate: Gate = 1.0
    """Gate, that is scale, of every adapter; 0 is the base."""
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
    judge: Place = ""
    """Another chat model that says whether the free answers make sense: a hub id, a local folder or
    a GGUF file. It counts if it tells labelled replies well enough, which is measured first."""
    json_out: Annotated[FilePath | None, As(name="json")] = None
    """Write the readings to this file as one JSON object."""

    def check(self) -> None:
        """Refuses options without effect, and a target, texts or places that cannot be used."""
        _refuse_unused(self)
        for guard in self.guard:
            guards.known(guard)
        if self.against is not None and not self.against.is_file():
            read_run(self.against)
        if self.target is not None:
            _refuse_no_target(self.target)
        refuse_unreadable(self.asked(self.whose()).measure)
        if self.json_out is not None:
            writable_file(self.json_out, "--json")
            _refuse_other_file(self.json_out)

    def do(self, console: Console, works: Callable[[], None]) -> None:
        """Reads the target unless it is a reading, and shows, saves and compares it."""
        from steerheal.commands import target
        from steerheal.measure.compare import compare
        from steerheal.pipeline.judging import examined

        works()
        other = None if self.against is None else _saved(self.against, console)
        if self.target is not None and self.target.is_file():
            found = read_record(self.target, Evaluation)
        else:
            persona = self.whose()
            ask = self.asked(persona)
            console.note(ask.how)
            if self.target is not None and is_run(self.target):
                what = target.of_run(
                    self.target, self.round, self.gate, persona, ask, console=console
                )
            else:
                model = self._model()
                what = target.of_model(model, self.target, self.gate, persona, ask, console=console)
            judge = None
            if self.judge:
                read = what.chat.fingerprint
                judge = examined(self.judge, str(what.chat.device), console, read=read)
            found = target.read(what, self.guard, console, judge)
        _show(found, console)
        if self.json_out is not None:
            write_record(self.json_out, found)
            console.say(f"readings  {self.json_out}")
        if other is not None:
            axis = validated(Persona, found.persona, source=found.target).axis
            _show_comparison(compare(found.scores, other, axis), str(self.against), console)

    def whose(self) -> Persona:
        """The persona whose axis and prompts are read: the run's own, where the target is one."""
        if self.target is not None and is_run(self.target):
            return read_run(self.target).whose(self.target)
        return find(self.persona)

    def asked(self, persona: Persona) -> Asked:
        """How to read: as the run that is held against, or as the target was, or as default."""
        like = next((path for path in (self.against, self.target) if is_run(path)), None)
        typed = {name: getattr(self, name) for name in self.model_fields_set}
        return asked(persona, like, typed, quick=self.quick)

    def _model(self) -> ModelSettings:
        """The model that is asked for, its template as in the run that it is held against."""
        settings = self.asked_model()
        if self.against is None or not is_run(self.against):
            return settings
        record = read_run(self.against)
        run = record.settings(self.against).model
        typed = self.model_fields_set
        own = {name: getattr(run, name) for name in ("template_vars", "date") if name not in typed}
        return settings.model_copy(update=own)


def _refuse_unused(options: EvaluateCommand) -> None:
    """What a saved reading, a run, or a run compared with has settled already.

    Raises:
        UserError: an option that would do nothing.
    """
    given = options.model_fields_set
    reading = (ReadCommand.model_fields.keys() | EvaluateCommand.model_fields.keys()) & {
        *MeasureSettings.model_fields,
        "quick",
    }
    why: dict[str, set[str]] = {}
    if options.target is not None and options.target.is_file():
        why["the target is a saved reading"] = given - {"target", "against", "json_out"}
    elif is_run(options.target):
        why["the target is a run, which has its own"] = given & {
            *("model", "template", "template_vars", "date", "persona")
        }
    elif options.target is None:
        why["a model by itself has neither rounds nor a gate"] = given & {"round", "gate"}
    else:
        why["an adapter by itself has no rounds"] = given & {"round"}
    if is_run(options.against):
        why["a target is read as the run that it is held against was"] = given & reading
    for reason, names in why.items():
        if names:
            flags = ", ".join(flag_of(EvaluateCommand, (name,)) for name in sorted(names))
            raise UserError(f"Without effect: {flags}, since {reason}. Leave it out.")


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


def _saved(path: Path, console: Console) -> Scores:
    """Readings to compare with, from a file or a run's best round."""
    from steerheal.pipeline.history import round_of

    if path.is_file():
        return read_record(path, Evaluation).scores
    record = read_run(path)
    return read_scores(path, round_of(record, path, 0, console) - 1, "healed")


def _show(found: Evaluation, console: Console) -> None:
    from steerheal.measure.readings.table import KINDS, listed

    sums = found.aggregates
    rows = [
        (
            name,
            f"{sums.nats[name]:.3f}",
            _bar(sums.nats[name]),
            shown(sums.delta_nats[name]),
        )
        for name in FOUNDATIONS
    ]
    title = f"{found.target} · {found.instrument} · {len(found.rows)} vignettes"
    title += f" · {found.how}" if found.how else ""
    console.table(title, ("foundation", "nats", "mean probability", "change from the base"), rows)
    for kind in KINDS:
        rows = [
            (entry.label, shown(sums.values.get(entry.name)), _change(entry, sums))
            for entry in listed(dict.fromkeys([*sums.values, *sums.changes]))
            if entry.kind == kind
        ]
        if kind == "guard":
            rows += [(name, shown(value), "") for name, value in found.guards.items()]
        console.table(kind, ("reading", "value", "change from the base"), rows)


def _change(entry: "Entry", sums: Summary) -> str:
    """The change with its own unit, where it has another one than the value."""
    if entry.name not in sums.changes:
        return ""
    unit = f" {entry.change_unit}" if entry.change_unit else ""
    return f"{shown(sums.changes[entry.name])}{unit}"


def _bar(nats: float) -> str:
    share = 0.0 if math.isnan(nats) else math.exp(nats)
    return "█" * round(BAR * share) + f" {share:.3f}"


def _show_comparison(found: Comparison, other: str, console: Console) -> None:
    from steerheal.measure.readings.table import listed

    readings = [
        *((f"Δ {name} [nats]", value) for name, value in found.delta_nats.items()),
        *((f"Δ {name} [clr, nats]", value) for name, value in found.delta_clr.items()),
        *((entry.difference, found.changes[entry.name]) for entry in listed(found.changes)),
    ]
    rows = [
        (name, shown(value), "moved" if value.moved else value.reason or "not moved")
        for name, value in readings
    ]
    surgical = {True: "yes", False: "no", None: "the target has not moved"}[found.surgical]
    console.table(f"against {other} · {found.n} pairs", ("reading", "value", ""), rows)
    console.say(f"surgical: {surgical}")
