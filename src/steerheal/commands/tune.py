"""`steerheal tune`: settings of a run, found by trials."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from steerheal import prompts
from steerheal.bounds import FilePath, FolderNameOrNone, Place
from steerheal.commands.command import POSITIONAL, Command
from steerheal.commands.helping import asked, page
from steerheal.commands.refuse import (
    refuse_judge,
    refuse_unreadable,
    refuse_unshared,
    writable_folder,
)
from steerheal.commands.scan import fractions
from steerheal.config import RunConfig, resolve
from steerheal.config.tuning import TuneSettings
from steerheal.console import Console
from steerheal.disk import write_bytes, write_text
from steerheal.extras import refuse_absent
from steerheal.line import As, Given, read
from steerheal.numbers import shown
from steerheal.personas import find

if TYPE_CHECKING:
    from steerheal.records.tuning import TuneRecord

FIGURE, SETTINGS = "front", "knee.toml"


class TuneCommand(Command):
    """Searches a run's settings: trait up, damage down, by trials of one round; needs extra `tune`.

    A trial has one round and no unsteered control, whatever --rounds and --control say: those go
    into the settings that are found. A trial whose direction does not serve the trait, or that
    check 1 speaks against, is given up early. The same command goes on after a kill, and with more
    --trials it goes further.
    """

    persona: Annotated[Place | None, POSITIONAL] = None
    """A built-in persona or a TOML file; the configuration's when none is given."""
    preset: Literal["quick", "standard", "full"] = "quick"
    """How much of everything else, in a trial and in the settings that are found."""
    config: FilePath | None = None
    """TOML file with a run's settings, on top of the preset; options on the line win."""
    runs: FilePath = Path("runs")
    """Folder of run folders; finished stages are shared with the runs in it."""
    name: FolderNameOrNone = ""
    """Name of the folder; tune-<persona> when not given."""
    line: Annotated[str, As(hidden=True)] = ""
    """The command line itself, recorded so that it can be repeated."""
    tuning: Annotated[TuneSettings, As(name="")] = TuneSettings()
    settings: Annotated[RunConfig, As(name="")] = RunConfig()

    @classmethod
    def of(cls, argv: Sequence[str]) -> Self:
        """The options that a line gives: preset and file give the defaults that it overrides.

        Raises:
            UserError: unknown preset or persona, wrong file, a value out of its bounds.
        """
        given = read(cls, argv)
        options = cls.judged(given, {"settings": _resolved(given).model_dump()})
        find(options.persona or options.settings.persona)
        return options.model_copy(update={"line": shlex.join(["steerheal", cls.word(), *argv])})

    @classmethod
    def help(cls, argv: Sequence[str]) -> str:
        """The help that a line asks for, with the values of the preset and the file before it."""
        given = read(cls, argv[: asked(argv)])
        preset = given.values.get("preset", "quick")
        return page(cls.word(), cls, argv, cls(preset=preset, settings=_resolved(given)))

    def check(self) -> None:
        """Refuses a missing extra, bands, texts or a folder that cannot be used."""
        fractions(self.tuning.bands)
        refuse_unshared(self.settings.model)
        self.settings.model.template_text()
        refuse_judge(self.settings, "tune")
        prompts.first_contexts(self.settings.vector.contexts)
        refuse_unreadable(self.settings.measure)
        writable_folder(self.runs, "--runs")
        refuse_absent("tune", "steerheal tune")

    def do(self, console: Console, works: Callable[[], None]) -> None:
        """Tries, and leaves a record, the front as a picture and the knee's settings."""
        from steerheal.pipeline.plan import asked_of
        from steerheal.pipeline.tuning import RECORD, Plan, begun, tune
        from steerheal.report.draw import png, svg
        from steerheal.report.tuning import figure

        works()
        own = self.settings
        if self.persona is not None:
            own = own.model_copy(update={"persona": self.persona})
        config, persona = asked_of(own, console)
        folder = self.runs / (self.name or f"tune-{persona.name}")
        bands = fractions(self.tuning.bands)
        with begun(Plan(folder, config, self.tuning, bands, persona, self.line)) as plan:
            record = tune(plan, console)
            drawing = figure(record)
            write_text(folder / f"{FIGURE}.svg", svg(drawing, FIGURE))
            write_bytes(folder / f"{FIGURE}.png", png(drawing))
            _show(record, console)
            self._advise(record, own, folder, console)
        console.say(f"record    {folder / RECORD}\nfigure    {folder / FIGURE}.png")

    def _advise(self, record: "TuneRecord", own: RunConfig, folder: Path, console: Console) -> None:
        """Writes the knee's settings, and says the line that runs them."""
        from steerheal.pipeline.tuning import chosen_config
        from steerheal.report.front import bends

        if record.knee is None:
            console.say("No trial was read to its end: there are no settings to advise.")
            return
        if not bends([one.point for one in record.trials if one.point is not None]):
            console.say("The front does not bend: what is advised is its end of least damage.")
        chosen = next(one.chosen for one in record.trials if one.number == record.knee)
        found = chosen_config(own, chosen, fractions(self.tuning.bands))
        _write_settings(folder / SETTINGS, found)
        words = ["steerheal", "run", own.persona, "--config", str(folder / SETTINGS)]
        words += ["--runs", str(self.runs)] if self.runs != Path("runs") else []
        console.say(f"run it    {shlex.join(words)}")


def _write_settings(file: Path, config: RunConfig) -> None:
    """What sets the settings apart from those of preset standard, as a file that a run takes."""
    import tomli_w

    own = _apart(config.model_dump(mode="json"), RunConfig().model_dump(mode="json"))
    own.pop("persona", None)
    write_text(file, tomli_w.dumps(own))


def _apart(values: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    """The values that differ, in their groups."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        other = usual.get(name)
        if isinstance(value, dict) and isinstance(other, dict):
            if inner := _apart(value, other):
                found[name] = inner
        elif value != other:
            found[name] = value
    return found


def _resolved(given: Given) -> RunConfig:
    """The settings of the preset and the file that a line names."""
    file = given.values.get("config")
    return resolve(given.values.get("preset") or "quick", Path(file) if file else None)


def _show(record: "TuneRecord", console: Console) -> None:
    columns = ("trial", "settings", "Δtrait", "damage", "")
    rows = []
    for one in record.trials:
        told = one.reason or ("knee" if one.number == record.knee else "")
        on = "front" if one.number in record.front else ""
        rows.append(
            (
                str(one.number + 1),
                " ".join(f"{name.partition('.')[2]} {v}" for name, v in one.chosen.items()),
                shown(one.trait),
                shown(one.damage),
                told or on,
            )
        )
    read, damage = record.settings.trait, record.settings.damage
    console.table(f"{record.name} · trait is {read}, damage is {damage}", columns, rows)
