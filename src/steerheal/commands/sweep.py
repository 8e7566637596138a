"""`steerheal sweep`: many runs from one file, several at a time."""

import shlex
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Self, TypeVar

from steerheal import prompts
from steerheal.bounds import FilePath, FolderNameOrNone, Place
from steerheal.commands.command import POSITIONAL, Command
from steerheal.commands.refuse import (
    refuse_unreadable,
    refuse_unsharable,
    refuse_unshared,
    writable_folder,
)
from steerheal.commands.workers import Count, refuse_without_ray, workers_of
from steerheal.config import RunConfig, Settings
from steerheal.config.sweeping import Point, points
from steerheal.console import Console
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
    share: Place = ""
    """URL of a folder in any store that fsspec knows, such as s3://BUCKET/FOLDER: finished stages
    are taken from there and put there, so that machines without a common disk share them."""
    workers: Count = 1
    """Runs at a time, each in a process of its own; several GPUs are shared out among them."""
    ray: Place = ""
    """Address of a Ray cluster whose workers they are, as HOST:PORT, auto for the one that this
    machine is part of, or local for one that ends with the command; needs the extra ray."""
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
            refuse_unshared(model)
            model.template_text()
        for measure in _unlike([item.config.measure for item in found]):
            refuse_unreadable(measure)
        prompts.first_contexts(max(item.config.vector.contexts for item in found))
        writable_folder(self.runs, "--runs")
        refuse_without_ray(self.ray)
        refuse_unsharable(self.share)

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

        workers = workers_of(self.workers, self.ray) or partial(one_by_one, console=console)
        folder = (self.runs / self._called()).absolute()
        alone = tuple(map(self._alone, found))
        try:
            record = sweep(Sweep(folder, found, alone, self.line, self.share), workers, console)
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
        shared = ["--share", self.share] if self.share else []
        return shlex.join([*line, "--runs", str(self.runs), "--name", point.name, *shared])


def _unlike(settings: Sequence[S]) -> Iterable[S]:
    """Each of the settings once."""
    return {item.model_dump_json(): item for item in settings}.values()
