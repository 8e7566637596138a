"""Moral vignettes in tinymfv's fields: bundled sets or a JSONL file; stratified subsets.

A row needs id, foundation_coarse and text; conditions are other (someone else acts) and self.
"""

import json
from collections.abc import Iterable, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path

from steerheal.errors import UserError, unknown
from steerheal.prompts import data
from steerheal.records import FOUNDATIONS, Record

COARSE = {
    **{name.capitalize(): name for name in FOUNDATIONS},
    "SocialNorms": "social",
    "Social Norms": "social",
}
BUNDLED = ("everyday", "ai")


class Vignette(Record):
    """One act, told in a sentence."""

    id: str
    condition: str
    """other or self."""
    foundation: str
    """The foundation it violates, canonical name."""
    text: str


def load(name: str, condition: str = "other") -> list[Vignette]:
    """A bundled set's vignettes under a condition, or those of a JSONL file.

    Raises:
        UserError: unknown set, unreadable file, a row with a missing or wrong field, a duplicate.
    """
    path = Path(name).expanduser()
    if path.suffix == ".jsonl" or path.is_file():
        return _parse(path, path.name, condition)
    if name not in BUNDLED:
        raise unknown("vignette set", name, BUNDLED, fix="Or give a JSONL file.")
    file = data().joinpath("vignettes", f"vignettes_{name}_{condition}_violate.jsonl")
    return _parse(file, name, condition)


def stratified(vignettes: Sequence[Vignette], per_foundation: int) -> list[Vignette]:
    """The first `per_foundation` of every foundation, in their order; 0 is all.

    Raises:
        UserError: a foundation has fewer.
    """
    if per_foundation == 0:
        return list(vignettes)
    taken: dict[str, int] = {}
    subset = []
    for vignette in vignettes:
        taken[vignette.foundation] = taken.get(vignette.foundation, 0) + 1
        if taken[vignette.foundation] <= per_foundation:
            subset.append(vignette)
    short = {name: count for name, count in taken.items() if count < per_foundation}
    if short:
        raise UserError(f"Asked for {per_foundation} vignettes per foundation; there are {short}.")
    return subset


def _parse(file: Path | Traversable, name: str, condition: str) -> list[Vignette]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read vignettes {name}: {error}.") from error
    vignettes = [
        _row(line, f"{name}, line {number}", condition)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not vignettes:
        raise UserError(f"{name} holds no vignettes.")
    _refuse_duplicates(name, (vignette.id for vignette in vignettes))
    return vignettes


def _row(line: str, place: str, condition: str) -> Vignette:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place}: not JSON ({error}).") from error
    missing = [key for key in ("id", "foundation_coarse", "text") if key not in row]
    if missing:
        raise UserError(f"{place}: lacks {', '.join(missing)}.")
    if row["foundation_coarse"] not in COARSE:
        raise unknown(f"foundation in {place}", str(row["foundation_coarse"]), COARSE)
    if not str(row["text"]).strip():
        raise UserError(f"{place}: the text is empty.")
    return Vignette(
        id=str(row["id"]),
        condition=condition,
        foundation=COARSE[row["foundation_coarse"]],
        text=str(row["text"]).strip(),
    )


def _refuse_duplicates(name: str, ids: Iterable[str]) -> None:
    seen: set[str] = set()
    for item in ids:
        if item in seen:
            raise UserError(f"{name} holds the id {item!r} twice.")
        seen.add(item)
