"""`steerheal sweep`: many runs from one file, several at a time."""

import shlex
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import Field

from steerheal import prompts
from steerheal.bounds import FilePath, FolderNameOrNone, Place
from steerheal.commands.command import POSITIONAL, Command
from steerheal.commands.refuse import refuse_unreadable, writable_folder
from steerheal.config import RunConfig, Settings
from steerheal.config.sweeping import Point, points
from steerheal.console import Console
from steerheal.extras import refuse_absent
from steerheal.line import As, words_of
from steerheal.personas import find
from steerheal.store import SWEEP

S = TypeVar("S", bound=Settings)


class SweepCommand(Command):
    """Makes many runs from one file, a grid or a list over any settings, seeds and personas.

    Runs share every stage that they have in common. The same command goes on after a kill, and a
    longer file makes only what is new.
    """

    file: Annotated[FilePath, POSITIONAL]
    """TOML file with preset, personas, seeds, and [settings], [grid] and [[run]] tables."""
    runs: FilePath = Path("runs")
    """Folder of run folders; finished stages are shared between the runs in it. On a cluster it
    has to be one that every machine sees at the same path."""
    name: FolderNameOrNone = ""
    """Name of the sweep's folder, with which its runs' begin; the file's own when not given."""
    workers: Annotated[int, Field(ge=1, le=1_000)] = 1
    """Runs at a time; more than one, or a cluster, needs the extra ray."""
    ray: Place = ""
    """Address of a Ray cluster as HOST:PORT, or auto; empty is this machine alone."""
    plan: bool = False
    """List the runs and what they would share, and leave nothing."""
    line: Annotated[str, As(hidden=True)] = ""
    """The command line itself, recorded so that it can be repeated."""

    @classmethod
    def of(cls, argv: Sequence[str]) -> Self:
        """The options that a line gives."""
        return (
            super()
            .of(argv)
            .model_copy(update={"line": shlex.join(["steerheal", cls.word(), *argv])})
        )

    def check(self) -> None:
        """Refuses a file that cannot be run whole: names, values, personas, texts, too many."""
        found = self._points()
        for name, reverse in {(item.config.persona, item.config.reverse) for item in found}:
            find(name, reverse=reverse)
        for model in _unlike([item.config.model for item in found]):
            model.template_text()
        for measure in _unlike([item.config.measure for item in found]):
            refuse_unreadable(measure)
        prompts.first_contexts(max(item.config.vector.contexts for item in found))
        writable_folder(self.runs, "--runs")
        if self.workers > 1 or self.ray:
            refuse_absent("ray", "--workers above 1" if self.workers > 1 else "--ray")

    def do(self, console: Console, works: Callable[[], None]) -> None:
        """Makes the runs, or lists them, and shows the table by headline."""
        from steerheal.report.sweeping import planned

        works()
        found = self._points()
        if self.plan:
            console.table(*planned(found))
            return
        self._make(found, console)

    def _make(self, found: tuple[Point, ...], console: Console) -> None:
        from steerheal.pipeline.sweeping import Sweep, one_by_one, sweep
        from steerheal.report.sweeping import across_seeds, by_headline

        if self.workers > 1 or self.ray:
            from steerheal.pipeline.on_ray import on_ray

            workers = partial(on_ray, workers=self.workers, address=self.ray)
        else:
            workers = partial(one_by_one, console=console)
        folder = (self.runs / self._called()).absolute()
        alone = tuple(map(self._alone, found))
        try:
            record = sweep(Sweep(folder, found, alone, self.line), workers, console)
        except KeyboardInterrupt:
            console.note(f"finished stages are kept; go on with: {self.line}")
            raise
        for table in (by_headline(record), across_seeds(record)):
            if table is not None:
                console.table(*table)
        console.say(f"record  {folder / SWEEP}")

    def _called(self) -> str:
        return self.name or self.file.stem

    def _points(self) -> tuple[Point, ...]:
        return points(self.file, self._called())

    def _alone(self, point: Point) -> str:
        """The line that makes one of the runs by itself."""
        words = words_of(RunConfig, point.given)
        line = ["steerheal", "run", point.config.persona, "--preset", point.preset, *words]
        return shlex.join([*line, "--runs", str(self.runs), "--name", point.name])


def _unlike(settings: Sequence[S]) -> Iterable[S]:
    """Each of the settings once."""
    return {item.model_dump_json(): item for item in settings}.values()
