"""A command's line as plain values: which words belong to which setting. No value is judged here.

The options are the fields of a pydantic model, so that nothing is written twice: a nested model's
are `--outer.inner`, a flag has its opposite, and a tuple takes as many words as follow.
"""

import difflib
import shlex
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from steerheal.errors import UserError


@dataclass(frozen=True)
class As:
    """How a field stands on the line, where its own name as an option is not all of it."""

    name: str | None = None
    """Another name; empty for a nested model whose options stand without a prefix."""
    also: tuple[str, ...] = ()
    """Shorter spellings."""
    positional: bool = False
    hidden: bool = False
    """Not on the line at all."""


class Option(NamedTuple):
    """One field on the line."""

    path: tuple[str, ...]
    """Its place in the model."""
    flags: tuple[str, ...]
    """Its spellings, the full one last; a positional's own name."""
    off: str
    """A flag's opposite; empty for what takes words."""
    most: int
    """Most words that it takes."""
    exact: bool
    """Whether it takes neither fewer."""
    field: FieldInfo
    positional: bool


class Given(NamedTuple):
    """What a line says."""

    values: dict[str, Any]
    """Words by setting, nested as the model is."""
    words: dict[tuple[str, ...], list[str]]
    """The same by place, as they were typed with their option."""


MANY = 1_000_000


def options(kind: type[BaseModel], prefix: str = "", path: tuple[str, ...] = ()) -> list[Option]:
    """Every field of a model, and of the models in it, that may stand on the line."""
    found: list[Option] = []
    for name, field in kind.model_fields.items():
        mark = next((item for item in field.metadata if isinstance(item, As)), As())
        own = name.replace("_", "-") if mark.name is None else mark.name
        inner = _model(field.annotation)
        if mark.hidden:
            continue
        if inner is not None:
            found += options(inner, f"{prefix}{own}." if own else prefix, (*path, name))
            continue
        flags = (own,) if mark.positional else (*mark.also, f"--{prefix}{own}")
        off = f"--{prefix}no-{own}" if field.annotation is bool else ""
        most, exact = _words(field.annotation)
        found.append(Option((*path, name), flags, off, most, exact, field, mark.positional))
    return found


def flag_of(kind: type[BaseModel], path: Sequence[str | int]) -> str:
    """The option of a setting as it is typed; the setting's dotted name where it is no option."""
    names = tuple(part for part in path if isinstance(part, str))
    for option in options(kind):
        if option.path == names:
            return option.flags[0]
    return ".".join(name.replace("_", "-") for name in names if name != "settings")


def read(kind: type[BaseModel], argv: Sequence[str]) -> Given:
    """The words of a line by setting.

    Raises:
        UserError: an unknown option, a missing or superfluous word, a value given twice.
    """
    known = options(kind)
    by_flag = {flag: option for option in known for flag in (*option.flags, option.off) if flag}
    given, rest, words = Given({}, {}), [], list(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            rest += words
            break
        if not word.startswith("-") or word == "-" or _number(word):
            rest.append(word)
            continue
        flag, explicit, value = word.partition("=")
        flag = flag.replace("_", "-")
        if flag not in by_flag or by_flag[flag].positional:
            raise _unknown(flag, [f for f in by_flag if f.startswith("--")])
        option = by_flag[flag]
        taken = [value] if explicit else _taken(words, option)
        _put(given, option, flag, taken, typed=[word, *([] if explicit else taken)])
    _positionals(given, [option for option in known if option.positional], rest)
    return given


def _unknown(flag: str, known: Sequence[str]) -> UserError:
    """With the options that end alike, since a stage's name is easily left out, or look alike."""
    alike = [name for name in known if name.endswith("." + flag.lstrip("-"))]
    near = alike or difflib.get_close_matches(flag, known, n=2, cutoff=0.6)
    hint = f" Perhaps you meant {' or '.join(near)}." if near else ""
    return UserError(f"Unknown option {flag}.{hint} --help shows the options.")


def _taken(words: list[str], option: Option) -> list[str]:
    """The words after an option that are its own, removed from the line."""
    count = 0
    while count < min(option.most, len(words)) and not words[count].startswith("--"):
        count += 1
    taken, words[:count] = words[:count], []
    return taken


def _put(given: Given, option: Option, flag: str, taken: list[str], *, typed: list[str]) -> None:
    many = option.most == MANY
    if option.path in given.words and not many:
        raise UserError(f"{flag} is given twice. Give it once.")
    if option.off and taken:
        raise UserError(f"{flag} takes no value; given {taken[0]!r}. Its opposite is {option.off}.")
    if option.exact and not option.off and len(taken) != option.most:
        needs = "a value" if option.most == 1 else f"{option.most} values"
        got = f"; given {' '.join(taken)}" if taken else ""
        raise UserError(f"{flag} needs {needs} after it{got}.")
    given.words.setdefault(option.path, []).extend(typed)
    home = given.values
    for name in option.path[:-1]:
        home = home.setdefault(name, {})
    name = option.path[-1]
    if option.off:
        home[name] = flag != option.off
    elif many:
        home[name] = [*home.get(name, ()), *taken]
    else:
        home[name] = taken[0] if option.most == 1 else taken


def _positionals(given: Given, known: Sequence[Option], rest: list[str]) -> None:
    for option in known:
        taken, rest = rest[: option.most], rest[option.most :]
        if taken:
            _put(given, option, option.flags[0], taken, typed=taken)
        elif option.field.is_required():
            raise UserError(f"{option.flags[0].upper()} is missing: {first(option.field)}")
    if rest:
        raise UserError(
            f"Nothing takes {' '.join(map(repr, rest))} here; an option begins with --."
        )


def first(field: FieldInfo) -> str:
    """The first sentence of a setting's documentation."""
    return (field.description or "").split(". ")[0].rstrip(".") + "."


def _number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _words(annotation: Any) -> tuple[int, bool]:
    """Most words that a type takes, and whether it takes neither fewer."""
    if annotation is bool:
        return 0, True
    if get_origin(annotation) is tuple:
        args = get_args(annotation)
        return (MANY, False) if args[-1] is Ellipsis else (len(args), True)
    return (MANY, False) if get_origin(annotation) is dict else (1, True)


def _model(annotation: Any) -> type[BaseModel] | None:
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_model else None


def placeholder(annotation: Any) -> str:
    """What stands for the value in the help."""
    annotation = (
        getattr(annotation, "__origin__", annotation)
        if (hasattr(annotation, "__metadata__"))
        else annotation
    )
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return placeholder(next(a for a in args if a is not type(None)))
    if origin is Literal:
        return "{" + ",".join(map(str, args)) + "}"
    if origin is dict:
        return "NAME=VALUE …"
    if origin is tuple:
        one = placeholder(args[0])
        return f"{one} …" if args[-1] is Ellipsis else " ".join([one] * len(args))
    return {int: "N", float: "X", Path: "PATH"}.get(annotation, "TEXT")


def with_option(line: str, flag: str, value: str | None) -> str:
    """A recorded command line with an option at this value; without the option for None."""
    words = shlex.split(line)
    if flag in words:
        place = words.index(flag)
        del words[place : place + 2]
    words = [word for word in words if not word.startswith(f"{flag}=")]
    return shlex.join([*words, *([] if value is None else [flag, value])])
