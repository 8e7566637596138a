"""The `steerheal` command's outermost edge: which signal ends it how, from its first moment on.

Before a command works, and after it has ended, nothing is open: a signal ends the process at once.
While it works, an interruption is an exception, so that what is open is closed and the record says
how the run ended. Signals that whoever started the process has it ignore stay ignored.
"""

import importlib
import os
import signal
from types import FrameType
from typing import NoReturn

from steerheal.errors import Ended

USUAL = {
    "SIGINT": signal.default_int_handler,
    "SIGTERM": signal.SIG_DFL,
    "SIGHUP": signal.SIG_DFL,
}
"""The signals that ask a process to end, and what handles them where nobody has chosen."""


def main() -> None:
    """The `steerheal` command; exit codes as in `cli.main`, 128 + the signal's number for one."""
    mine = [
        getattr(signal, name)
        for name, usual in USUAL.items()
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) == usual
    ]

    def handle(by: object) -> None:
        for number in mine:
            signal.signal(number, by)  # pyright: ignore[reportArgumentType]

    handle(_at_once)
    cli = importlib.import_module("steerheal.cli")
    try:
        cli.main(works=lambda: handle(_orderly))
    finally:
        handle(_at_once)


def _at_once(number: int, _frame: FrameType | None) -> NoReturn:
    os.write(2, b"error: interrupted\n")
    os._exit(128 + number)


def _orderly(number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt if number == signal.SIGINT else Ended(number)


if __name__ == "__main__":
    main()
