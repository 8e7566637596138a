"""The two kinds of failure: a `UserError` is shown as one message; everything else is a bug."""

import difflib
import signal
from collections.abc import Iterable


class UserError(Exception):
    """Something the user must change: what was given, what is allowed, what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class Ended(KeyboardInterrupt):
    """Another signal than Ctrl-C's asks the process to end; what is open is closed as after that.

    Its argument is the signal's number.
    """


def said(error: BaseException) -> str:
    """How an interruption came about."""
    if isinstance(error, Ended):
        return f"interrupted by {signal.Signals(error.args[0]).name}"
    return "interrupted by the user"


def unknown(kind: str, given: str, known: Iterable[str], *, fix: str = "") -> UserError:
    """A `UserError` for a name that is not in a list, with the nearest known name first."""
    names = sorted(known)
    near = nearest(given, names)
    hint = f" Perhaps you meant {near!r}." if near else ""
    tail = f" {fix}" if fix else ""
    return UserError(f"Unknown {kind} {given!r}.{hint} Known: {', '.join(names)}.{tail}")


def nearest(given: str, known: Iterable[str]) -> str:
    """The known name that is most like it; empty where none is."""
    return next(iter(difflib.get_close_matches(given.lower(), known, n=1, cutoff=0.5)), "")


def first_line(error: BaseException) -> str:
    """The first line of what an error says, as a sentence."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".") + "."


def no_cluster(address: str, error: BaseException) -> UserError:
    """An error that says how to start what a Ray cluster's address was given for."""
    return UserError(
        f"--ray: no Ray cluster at {address} ({first_line(error)}) Start one with "
        "`ray start --head`, and give its address as HOST:PORT, or auto on the same machine."
    )
