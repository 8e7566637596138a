"""Moral vignettes in tinymfv's fields: bundled sets or a JSONL file; stratified subsets.

A row needs id, foundation_coarse and text; conditions are other (someone else acts) and self.
"""

import json
from collections.abc import Iterable, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path

from steerheal.bounds import MOST_TEXT, read_text, shorten
from steerheal.config import MeasureSettings
from steerheal.disk import whole
from steerheal.errors import UserError, unknown
from steerheal.prompts import data
from steerheal.records import FOUNDATIONS, Record

COARSE = {
    **{name.capitalize(): name for name in FOUNDATIONS},
    "SocialNorms": "social",
    "Social Norms": "social",
}
BUNDLED = ("everyday", "ai")
HUB = "wassname/tiny-mfv"
MOST_BYTES = 100_000_000
MOST = 20_000
"""More vignettes than this are a mistake: reading them takes hours on a laptop."""


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
        path = _under(path, condition)
        return _parse(path, path.name, condition)
    if name.partition(":")[0] == HUB:
        return _from_hub(name.partition(":")[2] or "classic", condition)
    if name not in BUNDLED:
        raise unknown("vignette set", name, BUNDLED, fix="Or give a JSONL file.")
    file = data().joinpath("vignettes", f"vignettes_{name}_{condition}_violate.jsonl")
    return _parse(file, name, condition)


def chosen(settings: MeasureSettings) -> list[Vignette]:
    """The vignettes that the settings ask for, a stratified subset under every condition.

    Raises:
        UserError: as in `load` and `stratified`, or more vignettes than anyone means to read.
    """
    found = [
        vignette
        for condition in dict.fromkeys(settings.conditions)
        for vignette in stratified(load(settings.vignettes, condition), settings.per_foundation)
    ]
    if len(found) > MOST:
        raise UserError(
            f"{settings.vignettes} holds {len(found)} vignettes; at most {MOST} are read. Take a "
            "stratified subset with --measure.per-foundation."
        )
    return found


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


def _under(path: Path, condition: str) -> Path:
    """The file itself, or its twin for the reader's own acts, named as tinymfv names it."""
    if condition == "other":
        return path
    twin = path.with_name(path.name.replace("_other_violate", "_self_violate"))
    if "_self_violate" not in twin.name or not twin.is_file():
        raise UserError(f"{path.name} has no twin {twin.name} with the condition {condition!r}.")
    return twin


def _from_hub(subset: str, condition: str) -> list[Vignette]:
    from huggingface_hub import hf_hub_download  # noqa: PLC0415  slow, and seldom needed
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    file = f"{subset}/vignettes_{condition}_violate.jsonl"
    try:
        path = hf_hub_download(HUB, file, repo_type="dataset")
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise UserError(
            f"Cannot fetch {file} of the dataset {HUB}: {str(error).splitlines()[0]} "
            f"Give a bundled set ({', '.join(BUNDLED)}) or a JSONL file."
        ) from error
    return _parse(Path(path), f"{HUB}:{subset}", condition)


def _parse(file: Path | Traversable, name: str, condition: str) -> list[Vignette]:
    if isinstance(file, Path):
        lines = read_text(file, what="vignettes", most=MOST_BYTES).split("\n")
    else:
        lines = file.read_text(encoding="utf-8").split("\n")
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
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON ({error}).") from error
    if not isinstance(row, dict):
        raise UserError(f"{place}: not a JSON object: {shorten(line)}")
    missing = [key for key in ("id", "foundation_coarse", "text") if key not in row]
    if missing:
        raise UserError(f"{place}: lacks {', '.join(missing)}.")
    if str(row["foundation_coarse"]) not in COARSE:
        raise unknown(f"foundation in {place}", str(row["foundation_coarse"]), COARSE)
    if not isinstance(row["text"], str) or not row["text"].strip():
        raise UserError(f"{place}: the text is empty or no text.")
    if len(row["text"]) > MOST_TEXT:
        raise UserError(f"{place}: the text has more than {MOST_TEXT:,} characters.")
    for key, value in row.items():
        if key.startswith("human_") and not (isinstance(value, int | float) and value >= 0):
            raise UserError(f"{place}: the label {key} is {value!r}, not a share.")
    return Vignette(
        id=whole(str(row["id"])),
        condition=condition,
        foundation=COARSE[row["foundation_coarse"]],
        text=whole(str(row["text"])).strip(),
    )


def _refuse_duplicates(name: str, ids: Iterable[str]) -> None:
    seen: set[str] = set()
    for item in ids:
        if item in seen:
            raise UserError(f"{name} holds the id {item!r} twice.")
        seen.add(item)
