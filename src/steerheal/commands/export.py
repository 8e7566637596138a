"""`steerheal export`: what the rounds of a run changed, as files that other tools load."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from steerheal.bounds import FilePath, Gate, RoundOrBest
from steerheal.commands.command import POSITIONAL, Command
from steerheal.commands.refuse import writable_folder
from steerheal.console import Console
from steerheal.errors import UserError
from steerheal.store import read_run


class ExportCommand(Command):
    """Exports a run's history and prints the largest logit difference to the gated model."""

    run: Annotated[FilePath, POSITIONAL]
    """The run folder."""
    format: Literal["peft", "merged"] = "peft"
    """One rank-concatenated PEFT adapter, or the whole model with the history in its weights."""
    round: RoundOrBest = 0
    """Last round of the history, from 1; 0 is the run's best."""
    gate: Gate = 1.0
    """Gate of every adapter of the history; 0 is the base, whose adapter changes nothing."""
    out: FilePath | None = None
    """Where to; `<run>/export-<format>` when not given."""

    def check(self) -> None:
        """Refuses what is no run, and a place that is taken or cannot be written."""
        read_run(self.run)
        writable_folder(self._free_place(), "--out")

    def do(self, console: Console, works: Callable[[], None]) -> None:
        """Writes the files and says how far they are from the gated model."""
        from steerheal.heal.export import export_merged, export_peft
        from steerheal.pipeline.history import student_of

        works()
        record = read_run(self.run)
        chat, student, number = student_of(record, self.run, self.round, self.gate, console)
        out = self._free_place()
        make = {"peft": export_peft, "merged": export_merged}[self.format]
        probes = list(record.whose(self.run).prompts.show)
        made = make(chat, student.history, out, probes)
        base = "" if self.gate else ", which is the base: the rounds change nothing in it"
        console.say(f"{made.what} of rounds 1 to {number} at gate {self.gate:g}{base}: {out}")
        console.say(
            f"largest logit difference to the gated model: {made.difference:.2e} "
            f"(logits reach {made.scale:.1f}; {len(probes)} prompts)"
        )

    def _free_place(self) -> Path:
        """Where to.

        Raises:
            UserError: something is there.
        """
        out = self.out or self.run / f"export-{self.format}"
        if out.exists():
            raise UserError(f"{out} exists. Choose another folder with --out, or remove it.")
        return out
