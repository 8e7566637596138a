"""How large, and of what form, anything may be that a user gives.

Written once, for the line, for settings files, for personas and for Python.
A bound is where a value stops making sense or stops fitting, not where it stops being wise.
"""

import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints
from pydantic.fields import FieldInfo

from steerheal.errors import UserError
from steerheal.tables import Table

MOST_SEED = 2**31 - 1
"""Draws are seeded by (seed·1,009 + use)·1,000,003 + number, which has to fit 63 bits."""
MOST_ROUNDS, MOST_TEXT, MOST_PATH, MOST_NAME = 100, 8_000, 4_096, 100
PART = 255
"""Most bytes that file systems take in one part of a path."""
RESERVED = {"con", "prn", "aux", "nul", *(f"{p}{i}" for p in ("com", "lpt") for i in range(1, 10))}
"""Names that mean a device on Windows, whatever their ending."""


def _no_booleans(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers")
    return value


_NUMBER = BeforeValidator(_no_booleans)
Seed = Annotated[int, _NUMBER, Field(ge=0, le=MOST_SEED)]
Count = Annotated[int, _NUMBER, Field(ge=1, le=10_000)]
"""Prompts, contexts, completions, vignettes, epochs, draws."""
CountOrNone = Annotated[int, _NUMBER, Field(ge=0, le=10_000)]
Tokens = Annotated[int, _NUMBER, Field(ge=1, le=32_768)]
TokensOrNone = Annotated[int, _NUMBER, Field(ge=0, le=32_768)]
Rows = Annotated[int, _NUMBER, Field(ge=1, le=4_096)]
"""Rows of one batch."""
TopK = Annotated[int, _NUMBER, Field(ge=0, le=1_000_000)]
Rank = Annotated[int, _NUMBER, Field(ge=1, le=4_096)]
Rounds = Annotated[int, _NUMBER, Field(ge=1, le=MOST_ROUNDS)]
RoundOrBest = Annotated[int, _NUMBER, Field(ge=0, le=MOST_ROUNDS)]

Real = Annotated[float, _NUMBER, Field(allow_inf_nan=False)]
Fraction = Annotated[Real, Field(ge=0, le=1)]
PositiveFraction = Annotated[Real, Field(gt=0, le=1)]
BelowOne = Annotated[Real, Field(ge=0, lt=1)]
Inside = Annotated[Real, Field(gt=0, lt=1)]
Band = tuple[Fraction, Fraction]
Dose = Annotated[Real, Field(gt=0, le=1_000)]
Gate = Annotated[Real, Field(ge=0, le=1_000)]
"""A dial on finished adapters: 0 is the base, 1 what was trained."""
Temperature = Annotated[Real, Field(ge=0, le=100)]
Amount = Annotated[Real, Field(ge=0, le=1e9)]
"""Nats, weights of penalties, thresholds; a value out of every reach switches a rule off."""
PositiveAmount = Annotated[Real, Field(gt=0, le=1e9)]
Power = Annotated[Real, Field(ge=-10, le=10)]


def _plain(text: str) -> str:
    if bad := sorted({c for c in text if not c.isprintable()}):
        raise ValueError(f"must not hold control characters; it holds {', '.join(map(repr, bad))}")
    return text


def _place(text: str) -> str:
    """A path that the system can at least be asked about."""
    _plain(text)
    long = [part for part in Path(text).parts if len(part.encode(errors="replace")) > PART]
    if long:
        raise ValueError(f"a part of a path has at most {PART} bytes; {shorten(long[0])} has more")
    return text


def _not_empty(value: object) -> object:
    if value == "":
        raise ValueError("an empty path was given")
    return _place(value) if isinstance(value, str) else value


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MOST_TEXT)]
"""What a model is told or asked."""
Label = Annotated[str, Field(max_length=MOST_NAME), AfterValidator(_plain)]
Place = Annotated[str, Field(max_length=MOST_PATH), AfterValidator(_place)]
"""A name of something or a path; the field says what empty means."""
FilePath = Annotated[Path, BeforeValidator(_not_empty), AfterValidator(Path.expanduser)]


def folder_name(text: str) -> str:
    """The text, if every file system takes it as the name of one folder.

    Raises:
        ValueError: what is wrong with it.
    """
    _plain(text)
    if text != text.strip() or not text or "/" in text or "\\" in text:
        raise ValueError("must be one folder name, not empty, with no slash and no space around it")
    if text[0] in ".-" or text[-1] == ".":
        raise ValueError("must not begin with a dot or a hyphen, nor end with a dot")
    if text.partition(".")[0].casefold() in RESERVED or any(c in '<>:"|?*' for c in text):
        raise ValueError('is a name that some systems reserve, or holds one of < > : " | ? *')
    if len(text.encode(errors="replace")) > MOST_NAME:
        raise ValueError(f"must have at most {MOST_NAME} bytes")
    return text


FolderName = Annotated[str, AfterValidator(folder_name)]
FolderNameOrNone = Annotated[str, AfterValidator(lambda text: text and folder_name(text))]


def read_text(file: Path, *, what: str, most: int) -> str:
    """A user's text file: UTF-8, with or without a byte-order mark; any line ends.

    Args:
        file: Where it is.
        what: What the message calls it.
        most: Most bytes it may have.

    Raises:
        UserError: unreadable, too large, or not UTF-8.
    """
    try:
        with file.open("rb") as stream:
            raw = stream.read(most + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"Cannot read {what} {file}: {why}.") from error
    return decoded(raw, what=f"{what} {file}", most=most)


def decoded(raw: bytes, *, what: str, most: int) -> str:
    """A user's bytes as text; as in `read_text`."""
    if len(raw) > most:
        raise UserError(f"{what} has more than {most:,} bytes, the most that is read.")
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{what} is not UTF-8 text (byte {error.start}). Save it as UTF-8."
        ) from error


def shorten(value: object, most: int = 60) -> str:
    """What was given, as a message shows it."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(c if c.isprintable() else "�" for c in text)
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"


def allowed(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    """What a field takes, in words: "a whole number from 1 to 4096"."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return allowed(inner, (*more, *metadata))
    flat = _flat(metadata)
    table = next((item for item in flat if isinstance(item, Table)), None)
    if table is not None:
        return f"{' or '.join(table)}, or a place in Python, module:function"
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(allowed(a, flat) for a in get_args(annotation) if a is not type(None))
    if get_origin(annotation) is Literal:
        return " or ".join(map(str, get_args(annotation)))
    if get_origin(annotation) is tuple:
        return _several(get_args(annotation), flat)
    if annotation in (int, float):
        return ("a whole number" if annotation is int else "a number") + _range(flat)
    lengths = [getattr(m, "max_length", None) for m in flat]
    longest = next((length for length in lengths if length), None)
    names = {bool: "true or false", Path: "a path", str: "text"}
    return names.get(annotation, "a table") + (
        f" of at most {longest} characters" if longest else ""
    )


def _flat(metadata: tuple[Any, ...]) -> tuple[Any, ...]:
    found: list[Any] = []
    for item in metadata:
        found += item.metadata if isinstance(item, FieldInfo) else [item]
    return tuple(found)


def _several(args: tuple[Any, ...], metadata: tuple[Any, ...]) -> str:
    if args[-1] is not Ellipsis:
        return f"{len(args)} values, each {allowed(args[0])}"
    least = next((m.min_length for m in metadata if isinstance(m, MinLen)), 0)
    most = next((m.max_length for m in metadata if isinstance(m, MaxLen)), None)
    count = f"{least} to {most}" if most else f"{least} or more"
    return f"{count} values, each {allowed(args[0])}"


def _range(metadata: tuple[Any, ...]) -> str:
    low, high = "", ""
    for item in metadata:
        match item:
            case Ge(ge=value):
                low = f"from {_number(value)}"
            case Gt(gt=value):
                low = f"above {_number(value)}"
            case Le(le=value):
                high = f"to {_number(value)}"
            case Lt(lt=value):
                high = f"and below {_number(value)}"
            case _:
                pass
    if low.startswith("above"):
        high = high.replace("to ", "and at most ")
    return f" {low} {high}".rstrip() if low or high else ""


def _number(value: Any) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}".replace("e+0", "e")
