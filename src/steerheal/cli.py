"""The command line: finds the command, reads its line, and ends with its exit code."""

import importlib.metadata
import signal
import sys
from collections.abc import Callable, Sequence

from steerheal import ranks
from steerheal.commands.chat import ChatCommand
from steerheal.commands.command import Command
from steerheal.commands.compare import CompareCommand
from steerheal.commands.doctor import DoctorCommand
from steerheal.commands.evaluate import EvaluateCommand
from steerheal.commands.export import ExportCommand
from steerheal.commands.helping import asked
from steerheal.commands.paper import PaperCommand
from steerheal.commands.personas import PersonasCommand
from steerheal.commands.rank import RankCommand
from steerheal.commands.report import ReportCommand
from steerheal.commands.run import RunCommand
from steerheal.commands.sample import SampleCommand
from steerheal.commands.scan import ScanCommand
from steerheal.commands.seeds import SeedsCommand
from steerheal.commands.sweep import SweepCommand
from steerheal.commands.tune import TuneCommand
from steerheal.commands.ui import UiCommand
from steerheal.console import Console
from steerheal.errors import Ended, UserError, said, unknown

KINDS: dict[str, type[Command]] = {
    kind.word(): kind
    for kind in (
        RunCommand,
        DoctorCommand,
        PersonasCommand,
        EvaluateCommand,
        RankCommand,
        ScanCommand,
        TuneCommand,
        SeedsCommand,
        CompareCommand,
        SweepCommand,
        SampleCommand,
        ChatCommand,
        UiCommand,
        ReportCommand,
        PaperCommand,
        ExportCommand,
    )
}
"""Every command by its word, in the order of the help."""


def main(
    arguments: Sequence[str] | None = None, *, works: Callable[[], None] = lambda: None
) -> None:
    """The `steerheal` command; `works` is called when it begins to do what was asked.

    Exit codes: 0 done, 2 the user must change something, 130 interrupted, 143 ended by SIGTERM,
    1 a bug.
    """
    argv = list(sys.argv[1:] if arguments is None else arguments)
    console = Console()
    try:
        _dispatch(argv, console, works)
    except UserError as error:
        console.error(str(error))
        sys.exit(2)
    except KeyboardInterrupt as error:
        console.error(said(error))
        sys.exit(128 + (error.args[0] if isinstance(error, Ended) else signal.SIGINT))


def _dispatch(argv: list[str], console: Console, works: Callable[[], None]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        console.say("usage: steerheal COMMAND [OPTIONS]\n")
        for name, kind in KINDS.items():
            console.say(f"  {name:10} {(kind.__doc__ or '').splitlines()[0]}")
        console.say("\nsteerheal COMMAND --help shows a command's options.")
        return
    if argv[0] == "--version":
        console.say(importlib.metadata.version("steerheal"))
        return
    if argv[0] not in KINDS:
        raise unknown("command", argv[0], KINDS)
    if asked(argv[1:]) is not None:
        console.say(KINDS[argv[0]].help(argv[1:]))
        return
    options = parse(argv[0], argv[1:])
    if ranks.launched() > 1 and not isinstance(options, RunCommand):
        raise UserError(
            f"{ranks.launched()} processes were launched, and only `steerheal run` shares its work "
            f"out among several. Give `steerheal {argv[0]}` without the launcher."
        )
    options.check()
    options.do(console, works)


def parse(name: str, argv: Sequence[str]) -> Command:
    """A command's line as its options.

    Raises:
        UserError: an unknown option, a missing or wrong value.
    """
    return KINDS[name].of(argv)
