"""`steerheal compare`: arms on one model at equal damage and at equal KL."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field

from steerheal import prompts
from steerheal.bounds import FilePath, FolderNameOrNone, Label, Place
from steerheal.commands.command import POSITIONAL, Command
from steerheal.commands.helping import asked, page
from steerheal.commands.refuse import (
    refuse_unreadable,
    refuse_unsharable,
    refuse_unshared,
    writable_folder,
)
from steerheal.commands.workers import Count, refuse_without_ray, workers_of
from steerheal.config import MOST_LISTED, RunConfig
from steerheal.config.comparing import ArmSettings, CompareSettings, chosen_arms, of_arm, presets
from steerheal.console import Console
from steerheal.line import As, Given, read
from steerheal.numbers import UNKNOWN, number, shown
from steerheal.personas import find
from steerheal.records import Reading
from steerheal.store import COMPARE

if TYPE_CHECKING:
    from steerheal.records.comparing import CompareRecord, Contrast


class CompareCommand(Command):
    """Compares prompts, hooks, fine-tunes and heals at equal damage and at equal KL, over seeds.

    Arms share every stage that they have in common, and with runs in the same folder. The same
    command goes on after a kill; with more arms or seeds it makes those alone.
    """

    persona: Annotated[Place | None, POSITIONAL] = None
    """A built-in persona or a TOML file; the configuration's when none is given."""
    preset: Literal["quick", "standard", "full"] = "standard"
    """How much of everything: quick is two seeds with few points and short readings."""
    config: FilePath | None = None
    """TOML file with a run's settings, on top of the preset; options on the line win."""
    arms: FilePath | None = None
    """TOML file with arms of one's own beside the built-in ones, each an [[arm]] with a name and a
    kind, and points, system or settings where it needs them."""
    only: Annotated[tuple[Label, ...], Field(max_length=MOST_LISTED)] = ()
    """Arms that are compared; all of them when none are named. The base always is."""
    runs: FilePath = Path("runs")
    """Folder of run folders; finished stages are shared with the runs in it. On a cluster it has
    to be one that every machine sees at the same path."""
    name: FolderNameOrNone = ""
    """Name of the folder; compare-<persona> when not given."""
    share: Place = ""
    """URL of a folder in any store that fsspec knows, such as s3://BUCKET/FOLDER: finished stages
    are taken from there and put there. Machines without a common disk share them so."""
    workers: Count = 1
    """Seeds at a time, each in a process of its own; several GPUs are shared out among them."""
    ray: Place = ""
    """Address of a Ray cluster whose workers they are, as HOST:PORT, auto for the one that this
    machine is part of, or local for one that ends with the command; needs the extra ray."""
    line: Annotated[str, As(hidden=True)] = ""
    """The command line itself, recorded so that it can be repeated."""
    comparing: Annotated[CompareSettings, As(name="")] = CompareSettings()
    settings: Annotated[RunConfig, As(name="")] = RunConfig()

    @classmethod
    def of(cls, argv: Sequence[str]) -> Self:
        """The options that a line gives: preset and file give the defaults that it overrides.

        Raises:
            UserError: unknown preset, persona or arm, wrong file, a value out of its bounds.
        """
        given = read(cls, argv)
        settings, comparing = _resolved(given)
        under = {"settings": settings.model_dump(), "comparing": comparing.model_dump()}
        options = cls.judged(given, under)
        find(options.persona or options.settings.persona)
        return options.model_copy(update={"line": shlex.join(["steerheal", cls.word(), *argv])})

    @classmethod
    def help(cls, argv: Sequence[str]) -> str:
        """The help that a line asks for, with the values of the preset and the file before it."""
        given = read(cls, argv[: asked(argv)])
        settings, comparing = _resolved(given)
        preset = given.values.get("preset", "standard")
        known = cls(preset=preset, settings=settings, comparing=comparing)
        return page(cls.word(), cls, argv, known)

    def check(self) -> None:
        """Refuses arms that are not there, a folder that cannot be written, missing texts."""
        refuse_unshared(self.settings.model)
        self.settings.model.template_text()
        for arm in self._arms():
            of_arm(self.settings, arm)
        writable_folder(self.runs, "--runs")
        prompts.first_contexts(self.settings.vector.contexts)
        refuse_unreadable(self.settings.measure)
        refuse_without_ray(self.ray)
        refuse_unsharable(self.share)

    def do(self, console: Console, works: Callable[[], None]) -> None:
        """Makes, reads and compares; leaves a record and a page, and shows the table."""
        from steerheal.pipeline.comparing import Plan, begun, compare
        from steerheal.pipeline.plan import asked_of
        from steerheal.report.compare import write_page

        works()
        config = self.settings
        if self.persona is not None:
            config = config.model_copy(update={"persona": self.persona})
        config, persona = asked_of(config, console)
        folder = self.runs / (self.name or f"compare-{persona.name}")
        plan = Plan(folder, config, self.comparing, self._arms(), persona, self.line, self.share)
        try:
            with begun(plan) as agreed:
                record = compare(agreed, console, workers_of(self.workers, self.ray))
                written = write_page(folder, record)
        except KeyboardInterrupt:
            console.note(f"finished stages are kept; go on with: {self.line}")
            raise
        show(record, console)
        console.say(f"record  {folder / COMPARE}\nreport  {written}")

    def _arms(self) -> tuple[ArmSettings, ...]:
        only = self.only
        if only:
            only = (*only, self.comparing.ours, self.comparing.against)
        return chosen_arms(self.arms, only)


def _resolved(given: Given) -> tuple[RunConfig, CompareSettings]:
    """The settings of the preset and the file that a line names."""
    file = given.values.get("config")
    return presets(given.values.get("preset") or "standard", Path(file) if file else None)


def show(record: "CompareRecord", console: Console) -> None:
    """The primary comparison, then every arm, then what they say together."""
    from steerheal.report.compare import best_words, notes_of, ordered, primary_words

    console.say(primary_words(record))
    ours = record.settings.ours
    columns = (
        "arm", "less ours, equal damage", "p", "less ours, equal KL", "end", "trait", "damage",
        "KL", "η", "s",
    )  # fmt: skip
    rows = []
    for arm in ordered(record):
        name, last = arm.arm.name, arm.curve[-1] if arm.curve else None
        same, kl = (record.contrast(name, at) for at in ("damage", "KL"))
        point = f"{arm.along} {number(last.at)}".strip() if last and arm.along else ""
        spent = [item.seconds for item in arm.spent]
        rows.append(
            (
                name,
                _held(same, name == ours),
                number(same.adjusted) if same else "",
                _held(kl, name == ours),
                point,
                *(_bare(getattr(last, what, None)) for what in ("trait", "damage", "kl", "eta")),
                number(sum(spent) / len(spent)) if spent else "",
            )
        )
    title = (
        f"{record.name}: {len(record.arms)} arms, seeds: {record.settings.seeds}. Trait less that "
        f"of {ours}, 95 % intervals over seeds and prompts, p by Holm; then changes from the base, "
        "KL and η at the end of each curve, and the seconds to make it"
    )
    console.table(title, columns, rows)
    console.say(best_words(record))
    for note in notes_of(record):
        console.say(note)


def _held(found: "Contrast | None", ours: bool) -> str:
    return shown(found.reading) if found else "0" if ours else ""


def _bare(reading: Reading | None) -> str:
    return UNKNOWN if reading is None else shown(reading.value)
