"""`steerheal report`: a run's figures and report once more, from its records."""

from collections.abc import Callable
from typing import Annotated

from steerheal.bounds import FilePath
from steerheal.commands.command import POSITIONAL, Command
from steerheal.console import Console
from steerheal.store import read_run


class ReportCommand(Command):
    """Writes a run's figures and report again."""

    run: Annotated[FilePath, POSITIONAL]
    """The run folder."""

    def check(self) -> None:
        """Refuses what is no run."""
        read_run(self.run)

    def do(self, console: Console, works: Callable[[], None]) -> None:
        """Writes it and says where, and what is missing from it."""
        from steerheal.report.page import lacking, write_report

        works()
        page = write_report(self.run)
        for sentence in lacking(self.run, read_run(self.run)):
            console.note(f"missing from the report: {sentence}")
        console.say(str(page))
