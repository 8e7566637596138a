"""Bundled texts by purpose: contexts, control and open prompts, plain prose, vignette files."""

from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from steerheal.errors import UserError


def data() -> Traversable:
    """The package's data folder."""
    return files("steerheal").joinpath("data")


@cache
def lines(name: str, kind: str = "txt") -> tuple[str, ...]:
    """The non-empty lines of a bundled text file."""
    text = data().joinpath(f"{name}.{kind}").read_text(encoding="utf-8")
    return tuple(line.strip() for line in text.split("\n") if line.strip())


def contexts() -> tuple[str, ...]:
    """Diverse user messages that a vector is averaged over; any prefix stays diverse."""
    return lines("contexts")


def first_contexts(count: int) -> tuple[str, ...]:
    """The first `count` of them.

    Raises:
        UserError: there are not so many.
    """
    found = contexts()
    if count > len(found):
        raise UserError(f"{count} contexts were asked for; {len(found)} contexts are bundled.")
    return found[:count]


def cut(setting: str, asked: int, persona: str, have: int) -> str:
    """What is said when a persona has fewer evaluation prompts than were asked for."""
    return f"{setting} is {asked}; persona {persona} has {have} evaluation prompts, all are read"


def control_train() -> tuple[str, ...]:
    """Control prompts that training may use, such as an anchor's: the first half."""
    return _control()[: len(_control()) // 2]


def control_held_out() -> tuple[str, ...]:
    """Control prompts that only readings use: the second half, as varied as the first."""
    return _control()[len(_control()) // 2 :]


def _control() -> tuple[str, ...]:
    """Mundane prompts whose answers no persona should change; short questions and tasks, mixed."""
    return lines("control")
