"""Which folder a run goes into, with which settings and persona, and what it must agree with there.

All of it is known before the model is loaded, except whether it is the model of before.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel

from steerheal import prompts
from steerheal.config import RunConfig, merge, unlike, validated
from steerheal.console import Console
from steerheal.errors import UserError
from steerheal.line import with_option
from steerheal.personas import Persona, find
from steerheal.pipeline.claims import claimed, claimed_free
from steerheal.pipeline.ends import Until
from steerheal.pipeline.stage_store import STAGES
from steerheal.records import RunRecord
from steerheal.store import RUN, read_run

CODE_CHANGED = (
    "The code or a library has changed since this run's record was written: what it computes is "
    "made again."
)

OLDER: dict[str, Any] = {
    "control": False,
    "read_prompted": False,
    "measure": {"statements": 32},
}
"""Settings that older records do not have, as they made those."""


@dataclass(frozen=True)
class Plan:
    """A run that is about to start or to go on."""

    folder: Path
    config: RunConfig
    persona: Persona
    command: str
    """The line that repeats it."""
    old: RunRecord | None
    """What the folder holds."""

    def held_against(self, surroundings: dict[str, str]) -> tuple[str, ...]:
        """Notes on what has changed since the record that the folder holds was written.

        Raises:
            UserError: the model, or a file that is read from, is another.
        """
        before = {} if self.old is None else self.old.environment
        for name, what in (("fingerprint", "model"), ("texts", "vignettes or protocol")):
            if name in before and before[name] != surroundings[name]:
                raise UserError(self._another(what, name, before, surroundings))
        changed = before.get("code", surroundings["code"]) != surroundings["code"]
        return (CODE_CHANGED,) if changed else ()

    def _another(self, what: str, name: str, before: dict[str, str], now: dict[str, str]) -> str:
        ours = name == "fingerprint"
        one, other = (_model_of(side) if ours else "" for side in (before, now))
        early = "An earlier version of steerheal wrote it and told models apart otherwise. "
        return (
            f"{self.folder} holds a run with another {what}: {one}({before[name]}) there, "
            f"{other}({now[name]}) here. {'' if 'code' in before else early}Nothing in it was "
            "changed. Give this run another --name, or put back what that one was made with."
        )


def _model_of(surroundings: dict[str, str]) -> str:
    """Name and precision; an early record has no precision."""
    dtype = surroundings.get("dtype")
    return f"{surroundings['model']} {f'in {dtype} ' if dtype else ''}"


@contextmanager
def begun(
    config: RunConfig, runs: Path, name: str, *, until: Until | None, command: str, console: Console
) -> Iterator[Plan]:
    """A run with these settings, whose folder is this process's own meanwhile.

    Args:
        config: Its settings, with the persona that is asked for.
        runs: The folder of run folders.
        name: Its own folder's name; empty for one that is free, named after the persona.
        until: The check that it is to end after.
        command: The line that repeats it.
        console: Told where the persona has fewer prompts than were asked for.

    Raises:
        UserError: the folder holds another run, or another process is at work in it.
    """
    config, persona = asked_of(config, console)
    stem = Path(config.persona).stem.lstrip(".-") + ("-reversed" if config.reverse else "")
    with claimed(runs / name) if name else claimed_free(runs, stem) as folder:
        old = read_run(folder) if (folder / RUN).exists() else None
        if old is not None:
            # A run that began without a date goes on with the one that its template printed.
            config = dated(config, old.settings(folder).model.date)
            config = _as_made(folder, old, config, console)
            _refuse_another(folder, old, config, persona)
            _refuse_going_back(folder, old, until)
        yield Plan(folder, config, persona, command, old)


def asked_of(config: RunConfig, console: Console) -> tuple[RunConfig, Persona]:
    """Settings and persona of a new run, with no more prompts than the persona has."""
    persona = find(config.persona, reverse=config.reverse)
    persona = persona.model_copy(update={"prompts": persona.prompts.with_test()})
    return _within_pools(config, persona, console), persona


@contextmanager
def resumed(resume: Path, until: Until | None) -> Iterator[Plan]:
    """The run that a folder holds, with its own settings and its record's persona.

    The persona is the record's, whatever became of the file; the folder is this process's own
    meanwhile.

    Raises:
        UserError: there is no run, it went further than `until`, or another process is at work.
    """
    folder = home_of(resume)
    read_run(folder)
    with claimed(folder):
        old = read_run(folder)
        _refuse_going_back(folder, old, until)
        persona = old.whose(folder)
        yield Plan(
            folder, made_with(folder, old), persona, with_option(old.command, "--until", until), old
        )


def home_of(folder: Path) -> Path:
    """A run's folder by the path whose parent holds its stages, however it was given."""
    places = (folder.absolute(), folder.resolve())
    return next((place for place in places if (place.parent / STAGES).is_dir()), places[1])


def _has(folder: Path, old: RunRecord) -> dict[str, Any]:
    """The settings that stand in a record."""
    return old.settings(folder).model_dump(mode="json", exclude_unset=True)


def _lacking(has: dict[str, Any], older: dict[str, Any] = OLDER) -> dict[str, Any]:
    """What made a record, of the newer settings that do not stand in it."""
    return {
        name: _lacking(has.get(name, {}), value) if isinstance(value, dict) else value
        for name, value in older.items()
        if isinstance(value, dict) or name not in has
    }


def made_with(folder: Path, old: RunRecord) -> RunConfig:
    """The settings of a record's run, whichever of them there were then."""
    has = _has(folder, old)
    return validated(RunConfig, merge(has, _lacking(has)), source=str(folder))


def _as_made(folder: Path, old: RunRecord, config: RunConfig, console: Console) -> RunConfig:
    """The settings that are asked for, the newer ones as they made an older record."""
    asked = config.model_dump(mode="json")
    made = merge(asked, _lacking(_has(folder, old)))
    for name, (one, two) in unlike(asked, made).items():
        console.note(
            f"{folder} is from before {name}, and goes on as it was made, with {two} and not "
            f"{one}: another --name has what is asked for."
        )
    return validated(RunConfig, made, source=str(folder))


def _refuse_another(folder: Path, old: RunRecord, config: RunConfig, persona: Persona) -> None:
    onward = (
        f"Give this run another --name, or continue that one with "
        f"`steerheal run --resume {folder}`."
    )
    before = made_with(folder, old).model_dump(mode="json")
    if found := unlike(before, config.model_dump(mode="json")):
        said = "; ".join(f"{name} {one} there, {two} here" for name, (one, two) in found.items())
        raise UserError(f"{folder} holds a run with other settings: {said}. {onward}")
    # A record from before a field of personas existed means that field's default.
    kept = old.whose(folder)
    if found := unlike(kept.model_dump(mode="json"), persona.model_dump(mode="json")):
        raise UserError(
            f"{folder} holds a run of another persona: {kept.name} there, "
            f"{persona.name} of {config.persona} here; they differ in {', '.join(found)}. {onward}"
        )


def _refuse_going_back(folder: Path, old: RunRecord, until: Until | None) -> None:
    further = [row for row in old.rounds if row.outcome != "stopped"]
    if until is not None and further:
        raise UserError(
            f"{folder} holds a run that went further than --until {until}; its report "
            "shows what the checks saw. Choose another --name."
        )


def fewer(folder: Path, record: RunRecord, held: RunRecord) -> str:
    """What is said when a run that was made again came to less than its record holds."""
    again = with_option(record.command, "--name", f"{folder.name}-again")
    return (
        f"With this code the run ends after {len(record.rounds)} rounds ({record.outcome}); the "
        f"record in {folder} holds {len(held.rounds)} and stays as it is. What was made is kept: "
        f"`{again}` puts it into a folder of its own at once."
    )


def dated(config: RunConfig, date: str) -> RunConfig:
    """The settings with a date for the chat template; as they are where they have one."""
    if config.model.date or not date:
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"date": date})})


def agreed(
    folder: Path,
    kind: str,
    held: Mapping[str, Any],
    now: Mapping[str, BaseModel],
    *,
    grows: str,
) -> RunConfig:
    """What a folder of several runs holds is of these settings; the run's, with the date there.

    Args:
        folder: Where it lies.
        kind: What it is, as the user is told.
        held: Its record.
        now: config, persona and settings.
        grows: The setting that may differ: more of it goes on from what is there.

    Raises:
        UserError: it is of other settings or another persona.
    """
    config = dated(cast(RunConfig, now["config"]), str(held["config"]["model"]["date"]))
    for what, item in {**now, "config": config}.items():
        found = unlike(held[what], item.model_dump(mode="json"))
        found.pop(grows, None)
        if found:
            said = "; ".join(f"{name} {a} there, {b} here" for name, (a, b) in found.items())
            raise UserError(
                f"{folder} holds a {kind} with other settings: {said}. Give this one another "
                "--name: stages that both share are not made again."
            )
    return config


def _within_pools(config: RunConfig, persona: Persona, console: Console) -> RunConfig:
    """The settings with no more prompts than the persona has, and a note when that cuts any."""
    have = len(persona.prompts.evaluate)
    if config.measure.prompts <= have:
        return config
    console.note(prompts.cut("measure.prompts", config.measure.prompts, persona.name, have))
    measure = config.measure.model_copy(update={"prompts": have})
    return config.model_copy(update={"measure": measure})
