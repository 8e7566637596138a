"""`steerheal report`: a run's or a comparison's figures and page once more, from its records."""

from collections.abc import Callable
from typing import Annotated

from steerheal.bounds import FilePath
from steerheal.commands.command import POSITIONAL, Command
from steerheal.console import Console
from steerheal.store import COMPARE, read_record, read_run


class ReportCommand(Command):
    """Writes the figures and the report of a run or a comparison again."""

    run: Annotated[FilePath, POSITIONAL]
    """The run's or the comparison's folder."""

    def check(self) -> None:
        """Refuses what is neither."""
        if not (self.run / COMPARE).is_file():
            read_run(self.run)

    def do(self, console: Console, works: Callable[[], None]) -> None:
        """Writes it and says where, and what is missing from it."""
        from steerheal.records.comparing import CompareRecord
        from steerheal.report.compare import write_page
        from steerheal.report.page import lacking, write_report

        works()
        if (self.run / COMPARE).is_file():
            record = read_record(self.run / COMPARE, CompareRecord)
            console.say(str(write_page(self.run, record)))
            return
        page = write_report(self.run)
        for sentence in lacking(self.run, read_run(self.run)):
            console.note(f"missing from the report: {sentence}")
        console.say(str(page))
