"""A command's line as plain values: which words belong to which setting. No value is judged here.

The options are the fields of a pydantic model, so that nothing is written twice: a nested model's
are `--outer.inner`, a flag has its opposite, and a tuple takes as many words as follow.
"""

import argparse
import difflib
import json
import shlex
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from steerheal.errors import UserError
from steerheal.tables import Table


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


class _Keep(argparse.Action):
    """Puts the words of an option where its setting lies."""

    def __init__(self, option: Option, value: bool | None = None, **how: Any) -> None:
        super().__init__(**how)
        self._option, self._value = option, value

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        del parser
        words = [_bare(word) for word in (values if isinstance(values, list) else [values])]
        if words or option_string:
            _put(namespace.given, self._option, option_string, words, self._value)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. --help shows the options.")


def read(kind: type[BaseModel], argv: Sequence[str]) -> Given:
    """The words of a line by setting.

    Raises:
        UserError: an unknown option, a missing or superfluous word, a value given twice.
    """
    known, given = options(kind), Given({}, {})
    words = [_guarded(_hyphened(word)) for word in argv]
    try:
        parser = _parser(known)
        # Mixed with options, argparse reads what follows -- once more, as options.
        way = parser.parse_known_args if "--" in words else parser.parse_known_intermixed_args
        _, rest = way(words, argparse.Namespace(given=given))
    except argparse.ArgumentError as error:
        raise _misused(known, error) from error
    unknown = next((word for word in rest if word.startswith("-") and word != "-"), None)
    if unknown is not None:
        raise _unknown(unknown.partition("=")[0], known)
    if rest:
        raise UserError(
            f"Nothing takes {' '.join(map(repr, rest))} here; an option begins with --."
        )
    for option in known:
        if option.positional and option.field.is_required() and option.path not in given.words:
            raise UserError(f"{option.flags[0].upper()} is missing: {first(option.field)}")
    return given


def _parser(known: Sequence[Option]) -> argparse.ArgumentParser:
    parser = _Parser(
        add_help=False,
        allow_abbrev=False,
        exit_on_error=False,
        argument_default=argparse.SUPPRESS,
    )
    for option in known:
        keep: dict[str, Any] = {"action": _Keep, "option": option}
        if option.positional:
            parser.add_argument(option.flags[0], nargs="*" if option.most == MANY else "?", **keep)
        elif option.off:
            dest = option.flags[-1].lstrip("-")
            parser.add_argument(*option.flags, dest=dest, nargs=0, value=True, **keep)
            parser.add_argument(option.off, dest=dest, nargs=0, value=False, **keep)
        else:
            many = {MANY: "*", 1: None}.get(option.most, option.most)
            parser.add_argument(*option.flags, nargs=many, **keep)
    return parser


def _hyphened(word: str) -> str:
    """An option spelled with underscores as its name is."""
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value if flag.startswith("--") else word


def _guarded(word: str) -> str:
    """A negative number behind a space: argparse takes −inf and −1e-3 for options."""
    return f" {word}" if word.startswith("-") and _number(word) else word


def _bare(word: str) -> str:
    return word[1:] if word.startswith(" -") and _number(word[1:]) else word


def _number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _misused(known: Sequence[Option], error: argparse.ArgumentError) -> UserError:
    flags = (error.argument_name or "").split("/")
    option = next(item for item in known if {*flags} & {*item.flags, item.off})
    if option.off:
        return UserError(f"{option.flags[0]} and {option.off} take no value. Leave it out.")
    return _needs(option)


def _needs(option: Option) -> UserError:
    needs = "a value" if option.most == 1 else f"{option.most} values"
    one = option.most == 1
    hint = f"; one that begins with a hyphen goes as {option.flags[0]}=VALUE" if one else ""
    return UserError(f"{option.flags[0]} needs {needs} after it{hint}.")


def _unknown(flag: str, known: Sequence[Option]) -> UserError:
    """With the options that end alike, since a stage's name is easily left out, or look alike."""
    word = flag.lstrip("-").lower()
    names = [name for option in known if not option.positional for name in option.flags]
    if any(option.positional and word == option.flags[0] for option in known):
        return UserError(f"Unknown option {flag}: {word.upper()} is given without one.")
    if any(name.startswith(f"--{word}.") for name in names):
        return UserError(f"Unknown option {flag}: it is a group. --help {word} shows its options.")
    alike = [name for name in names if name.endswith("." + word)]
    near = alike or difflib.get_close_matches("--" + word, names, n=2, cutoff=0.6)
    hint = f" Perhaps you meant {' or '.join(near)}." if near else ""
    return UserError(f"Unknown option {flag}.{hint} --help shows the options.")


def _put(
    given: Given, option: Option, flag: str | None, words: list[str], value: bool | None
) -> None:
    many = option.most == MANY
    if option.path in given.words and not many:
        raise UserError(f"{flag} is given twice. Give it once.")
    if option.exact and not option.off and len(words) != option.most:
        raise _needs(option)
    given.words.setdefault(option.path, []).extend([*([flag] if flag else []), *words])
    home = given.values
    for name in option.path[:-1]:
        home = home.setdefault(name, {})
    name = option.path[-1]
    if value is not None:
        home[name] = value
    elif many:
        home[name] = [*home.get(name, ()), *words]
    else:
        home[name] = words[0] if option.most == 1 else words


def first(field: FieldInfo) -> str:
    """The first sentence of a setting's documentation."""
    return (field.description or "").split(". ")[0].rstrip(".") + "."


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


def placeholder(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What stands for the value in the help."""
    if table := table_of(metadata):
        return "{" + ",".join(table) + "}"
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


def table_of(metadata: Sequence[Any]) -> Table | None:
    """The table whose names a field takes, if it takes any's."""
    return next((item for item in metadata if isinstance(item, Table)), None)


def words_of(kind: type[BaseModel], values: dict[str, Any]) -> list[str]:
    """Settings, nested as the model is, as the words of a line that gives them."""
    words: list[str] = []
    for option in options(kind):
        value: Any = values
        for name in option.path:
            value = value.get(name) if isinstance(value, dict) else None
        flag = option.flags[-1]
        if value is None:
            continue
        if option.off:
            words.append(flag if value else option.off)
        elif isinstance(value, list | tuple):
            words += [flag, *map(str, value)]
        else:
            words.append(f"{flag}={json.dumps(value) if isinstance(value, dict) else value}")
    return words


def with_option(line: str, flag: str, value: str | None) -> str:
    """A recorded command line with an option at this value; without the option for None."""
    words = shlex.split(line)
    if flag in words:
        place = words.index(flag)
        del words[place : place + 2]
    words = [word for word in words if not word.startswith(f"{flag}=")]
    return shlex.join([*words, *([] if value is None else [flag, value])])
