"""Settings from files and other data, and one sentence for each that is wrong."""

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from steerheal.bounds import allowed, read_text, shorten
from steerheal.errors import UserError, nearest, unknown

S = TypeVar("S", bound=BaseModel)

MOST_BYTES = 8_000_000
"""Largest settings or persona file that is read."""
OWN_NAMES = {
    "positive": "a persona, which is given by itself as PERSONA",
    "arm": "a file of arms, which `steerheal compare` takes as --arms",
    "grid": "a sweep, which `steerheal sweep` takes",
    "run": "a sweep, which `steerheal sweep` takes",
    "settings": "a sweep, which `steerheal sweep` takes",
    **dict.fromkeys(
        (
            "rounds", "vector", "sampling", "push", "dose", "filter", "heal", "measure", "model",
            "check",
        ),
        "a file of settings, which is given as --config",
    ),
}  # fmt: skip
"""What a file is in which such a name stands, each of one kind of file alone."""
UNKNOWN = "extra_forbidden"
"""What pydantic calls a name that is no field."""


def read_toml(file: Path, kind: type[BaseModel]) -> dict[str, Any]:
    """A TOML file's content, to become a `kind`.

    Raises:
        UserError: unreadable, too large, nested too deeply, not TOML, or a file of another kind.
    """
    text = read_text(file.expanduser(), what="the file", most=MOST_BYTES)
    try:
        found = tomllib.loads(text)
    except RecursionError as error:
        raise UserError(f"{file} is nested too deeply to be read.") from error
    except ValueError as error:
        raise UserError(f"{file} is not valid TOML: {error}") from error
    told = next((what for name, what in OWN_NAMES.items() if name in found), "")
    if told and not found.keys() & kind.model_fields.keys():
        raise UserError(f"{file} is {told}.")
    return found


def validated(kind: type[S], values: object, *, source: str) -> S:
    """`values` as a `kind`; every problem is named with its setting in one message.

    Raises:
        UserError: a wrong name, type or bound.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{source}: " + "; ".join(problems(kind, error))) from error


def problems(
    kind: type[BaseModel],
    error: ValidationError,
    name: Callable[[Sequence[str | int]], str] = lambda path: ".".join(map(str, path)),
) -> list[str]:
    """One sentence per validation problem: setting, what was given, what is allowed.

    Args:
        kind: What was to be made.
        error: Why it could not be.
        name: What the user calls the setting at a place in it.
    """
    # A union's members have places of their own, and the same sentence.
    items = _first_each(error.errors())
    strange: dict[tuple[str | int, ...], list[str]] = {}
    for item in items:
        if item["type"] == UNKNOWN:
            strange.setdefault(item["loc"][:-1], []).append(str(item["loc"][-1]))
    several = {place: names for place, names in strange.items() if len(names) > 1}
    said = [_unknown_words(names, _fields_at(kind, place)) for place, names in several.items()]
    said += [
        _sentence(kind, item, name)
        for item in items
        if item["type"] != UNKNOWN or item["loc"][:-1] not in several
    ]
    return list(dict.fromkeys(said))


def _unknown_words(names: Sequence[str], known: Sequence[str]) -> str:
    """Several names that are no settings, each with the known one that is nearest."""
    near = {name: nearest(name, sorted(known)) for name in names}
    told = (f"{name!r}" + (f" (perhaps {like!r})" if like else "") for name, like in near.items())
    return f"Unknown settings {', '.join(told)}. Known: {', '.join(sorted(known))}"


def _first_each(items: Sequence[Any]) -> list[Any]:
    """One problem per setting: a union complains once for each of its members, a list per item.

    A list whose item is wrong also complains that it lacks one.
    """
    places = [item["loc"] for item in items]
    found: dict[tuple[str, ...], Any] = {}
    for item in items:
        here = item["loc"]
        if any(len(place) > len(here) and place[: len(here)] == here for place in places):
            continue
        found.setdefault(tuple(part for part in item["loc"] if isinstance(part, str)), item)
    return list(found.values())


def _sentence(kind: type[BaseModel], item: Any, name: Callable[[Sequence[str | int]], str]) -> str:
    path, what = item["loc"], item["type"]
    if what == UNKNOWN:
        return str(unknown("setting", str(path[-1]), _fields_at(kind, path[:-1])))
    field, place = _field_at(kind, path)
    called = name(place)
    if what == "missing":
        return f"{called or path[-1]} is missing"
    given = shorten(item["input"]) if item["input"] not in ("", (), []) else "nothing"
    if what in ("value_error", "assertion_error"):
        said = item["msg"].removeprefix("Value error, ")
        return f"{called}: {said} (given: {given})" if field else f"{called}: {said}".lstrip(": ")
    if field is None:
        return f"{called + ': ' if called else ''}{item['msg']} (given: {given})"
    return f"{called}: given {given}; allowed: {allowed(field.annotation, tuple(field.metadata))}"


def _field_at(
    kind: type[BaseModel], path: Sequence[str | int]
) -> tuple[FieldInfo | None, Sequence[str | int]]:
    """The field that a place lies in, and the place without what a type adds to it."""
    field: FieldInfo | None = None
    for depth, part in enumerate(path):
        if field is None and isinstance(part, int):
            continue
        if part not in kind.model_fields:
            return field, path[: depth + isinstance(part, int)]
        field = kind.model_fields[str(part)]
        inner, rest = _fields_of(field), path[depth + 1 :]
        if inner is None or (get_origin(field.annotation) is tuple and len(rest) < 2):
            return field, path[: depth + 1 + bool(rest and isinstance(rest[0], int))]
        kind, field = inner, None
    return None, path


def _fields_at(kind: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    for name in path:
        field = kind.model_fields.get(str(name))
        kind = (field and _fields_of(field)) or kind
    return list(kind.model_fields)


def _fields_of(field: FieldInfo) -> type[BaseModel] | None:
    """What has fields of its own in a field: its value, or each of its values."""
    inner = field.annotation
    if get_origin(inner) is tuple:
        inner = get_args(inner)[0]
    return inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None
