"""`steerheal paper`: a finished run or comparison as a paper to go on writing."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from steerheal.bounds import FilePath
from steerheal.commands.command import POSITIONAL, Command
from steerheal.commands.refuse import writable_folder
from steerheal.console import Console
from steerheal.store import COMPARE, RUN, read_run


class PaperCommand(Command):
    """Writes figures, tables, methods, bibliography and a Quarto document from a finished record.

    Nothing is computed by a model, and every number in the document is inserted from the record.
    """

    run: Annotated[FilePath, POSITIONAL]
    """The run's or the comparison's folder, or its record."""
    out: FilePath | None = None
    """Where to; `<run>/paper` when not given. An earlier paper of the same record is rewritten,
    unless a file of it was edited."""

    def check(self) -> None:
        """Refuses what is neither, and a place that cannot be written."""
        if not (self._folder() / COMPARE).is_file():
            read_run(self._folder())
        writable_folder(self._place().parent, "--out")

    def do(self, console: Console, works: Callable[[], None]) -> None:
        """Writes it and says where, and what makes pages of it."""
        from steerheal.report.paper.write import finished, write_paper

        works()
        written = write_paper(finished(self._folder()), self._place())
        console.say(f"paper   {written}")
        console.say(f"render  quarto render {written}   (HTML and, where there is TeX, PDF)")

    def _folder(self) -> Path:
        return self.run.parent if self.run.name in (RUN, COMPARE) else self.run

    def _place(self) -> Path:
        return (self.out or self._folder() / "paper").absolute()
