"""`steerheal run`: the whole method, in a folder of its own."""

import shlex
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from steerheal import prompts, ranks
from steerheal.bounds import FilePath, FolderNameOrNone, Place
from steerheal.commands.command import POSITIONAL, Command
from steerheal.commands.helping import asked, page
from steerheal.commands.refuse import (
    refuse_unreadable,
    refuse_unsharable,
    refuse_unshared,
    writable_folder,
)
from steerheal.config import RunConfig, resolve
from steerheal.console import Console
from steerheal.errors import UserError
from steerheal.extras import TRACKERS, Tracker, refuse_absent
from steerheal.line import As, Given, read
from steerheal.personas import Persona, find
from steerheal.pipeline.ends import Until
from steerheal.pipeline.plan import Plan, asked_of, begun, made_with, resumed
from steerheal.store import read_run

if TYPE_CHECKING:
    from steerheal.pipeline.round import Listener


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
    """Name of the run folder; the persona's when not given."""
    resume: FilePath | None = None
    """A run folder to continue with its own settings; other settings are not allowed."""
    until: Until | None = None
    """End after this check of the first round: check1 says whether steering works, check2 whether
    its text can be filtered. The same command without it goes on from there."""
    share: Place = ""
    """URL of a folder in any store that fsspec knows, such as s3://BUCKET/FOLDER. Finished stages
    are taken from there and put there: machines without a common disk share them so."""
    plan: bool = False
    """Say what every stage will cost here in tokens, time and memory, and leave nothing. A few
    seconds of this model's own work give the pace."""
    track: Tracker | None = None
    """Where every round's metrics go as well. tensorboard writes event files under the run's
    `track`; wandb, trackio and mlflow go where their own settings say. A run that is resumed goes
    on there when it is given again."""
    line: Annotated[str, As(hidden=True)] = ""
    """The command line itself, recorded so that the run can be repeated."""
    settings: Annotated[RunConfig, As(name="")] = RunConfig()

    @classmethod
    def of(cls, argv: Sequence[str]) -> Self:
        """The options that a line gives: preset and file give the defaults that it overrides.

        Raises:
            UserError: unknown preset or persona, wrong file, a value out of its bounds.
        """
        given = read(cls, argv)
        settings = _resolved(given)
        options = cls.judged(given, {"settings": settings.model_dump()})
        if options.resume is None:
            find(options.persona or options.settings.persona)
        else:
            _refuse_beside_resume(options.resume, given)
        return options.model_copy(update={"line": shlex.join(["steerheal", cls.word(), *argv])})

    @classmethod
    def help(cls, argv: Sequence[str]) -> str:
        """The help that a line asks for, with the values of the preset and the file before it."""
        given = read(cls, argv[: asked(argv)])
        preset = given.values.get("preset", "standard")
        return page(cls.word(), cls, argv, cls(preset=preset, settings=_resolved(given)))

    def check(self) -> None:
        """Refuses a folder that cannot be written, texts and a tracker that are not there."""
        refuse_unsharable(self.share)
        if self.track is not None:
            refuse_absent(TRACKERS[self.track], f"--track {self.track}")
        if self.resume is not None:
            read_run(self.resume)
            writable_folder(self.resume, "--resume")
            return
        writable_folder(self.runs, "--runs")
        if self.name:
            writable_folder(self.runs / self.name, "--name")
        refuse_unshared(self.settings.model)
        self.settings.model.template_text()
        prompts.first_contexts(self.settings.vector.contexts)
        refuse_unreadable(self.settings.measure)

    def do(self, console: Console, works: Callable[[], None]) -> None:
        """Runs until the last round, or the check that is named, and writes the report."""
        from steerheal.pipeline.run import run

        works()
        with ranks.together(), ExitStack() as stack:
            made = None
            if not ranks.leads():
                console.hushed()
            if self.plan:
                self._foretold(console)
                return
            try:
                if ranks.leads():
                    made = stack.enter_context(self._begun(console))
            finally:
                made = ranks.told(made)
            if made is None:  # the leader has said why
                raise SystemExit(2)
            listener = self._listener(made, console, stack)
            run(made, self.until, console, share=self.share, listener=listener)

    def _listener(self, made: Plan, console: Console, stack: ExitStack) -> "Listener":
        """Who hears how the loop goes."""
        if self.track is None or not ranks.leads():
            return console
        from steerheal.pipeline.tracking import tracked

        return stack.enter_context(tracked(self.track, made, console))

    def _foretold(self, console: Console) -> None:
        from steerheal.pipeline.run import plan

        config, persona, done = self._settled(console)
        plan(config, persona, console, until=self.until, done=done)

    def _begun(self, console: Console) -> AbstractContextManager[Plan]:
        if self.resume is not None:
            return resumed(self.resume, self.until)
        return begun(
            self._asked(),
            self.runs,
            self.name,
            until=self.until,
            command=self.line,
            console=console,
        )

    def _asked(self) -> RunConfig:
        """The settings with the persona that is asked for."""
        if self.persona is None:
            return self.settings
        return self.settings.model_copy(update={"persona": self.persona})

    def _settled(self, console: Console) -> tuple[RunConfig, Persona, set[tuple[int, str]]]:
        """Settings and persona of what is planned, and the stages that a run has already."""
        if self.resume is None:
            return *asked_of(self._asked(), console), set()
        record = read_run(self.resume)
        done = {(mark.round, mark.name) for mark in record.stages}
        return made_with(self.resume, record), record.whose(self.resume), done


def _resolved(given: Given) -> RunConfig:
    """The settings of the preset and the file that a line names."""
    file = given.values.get("config")
    return resolve(given.values.get("preset") or "standard", Path(file) if file else None)


def _refuse_beside_resume(folder: Path, given: Given) -> None:
    """A run goes on with its own settings: what else is asked for would be silently ignored.

    Read off the line, since what is given may equal a default and still not be the run's.
    """
    besides = [
        word
        for path, words in given.words.items()
        if path not in (("resume",), ("until",), ("plan",), ("share",), ("track",))
        for word in words
    ]
    if besides:
        raise UserError(
            f"--resume continues {folder} with its own settings; given besides: "
            f"{shlex.join(besides)}. Leave that out, or start another run under another --name in "
            "the same --runs: stages that it shares with this one are not made again."
        )
