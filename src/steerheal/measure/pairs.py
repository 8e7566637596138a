"""Rows of two states on the same units: paired by key, whatever their order."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from numpy.typing import ArrayLike

from steerheal.errors import UserError
from steerheal.measure.stats import mean
from steerheal.records import Reading, Scores, VignetteRow

Row = TypeVar("Row")

UNITS: dict[str, tuple[str, Callable[[Any], Hashable]]] = {
    "vignettes": ("vignettes", lambda row: (row.id, row.condition)),
    "persona": ("prompts", lambda row: row.completion.prompt),
    "canary": ("canary statements", lambda row: row.id),
    "long": ("long answers", lambda row: row.completion.prompt),
    "json_replies": ("JSON replies", lambda row: row.completion.prompt),
}
"""What the rows in each field of `Scores` are about, and what pairs them."""
CORE = ("vignettes", "persona", "canary")
"""Rows that two states must have read on the same units to be compared at all."""
FIX = "Measure both states with the same persona and --measure settings."


def rows_of(scores: Scores, field: str) -> tuple[Any, ...]:
    """The rows in a field of `Scores`, or those that the reading of this name brought."""
    return getattr(scores, field) if field in UNITS else scores.own.get(field, ())


def called(field: str) -> str:
    """What the rows of a field are about."""
    return UNITS[field][0] if field in UNITS else f"rows of {field}"


def key_of(field: str) -> Callable[[Any], Hashable]:
    """What pairs the rows of a field."""
    return UNITS[field][1] if field in UNITS else lambda row: row.id


def matched_vignettes(
    pos_rows: Sequence[VignetteRow], neg_rows: Sequence[VignetteRow]
) -> list[tuple[VignetteRow, VignetteRow]]:
    """Both arms' rows of every vignette and condition, in the order of the first arm.

    Raises:
        UserError: no rows, a vignette twice under a condition, or vignettes that only one arm has.
    """
    return matched(pos_rows, neg_rows, "vignettes")


def matched(pos_rows: Sequence[Row], neg_rows: Sequence[Row], field: str) -> list[tuple[Row, Row]]:
    """Both arms' rows of every unit in a field of `Scores`, in the order of the first arm.

    Raises:
        UserError: no rows, a key twice in one arm, or keys that only one arm has.
    """
    what, key = called(field), key_of(field)
    pos, neg = _by_key(pos_rows, key, what), _by_key(neg_rows, key, what)
    if not pos and not neg:
        raise UserError(f"Neither state has {what} to compare. {FIX}")
    if pos.keys() != neg.keys():
        raise UserError(
            f"The two states were measured on different {what}: {len(pos.keys() & neg.keys())} "
            f"match, of {len(pos)} and {len(neg)}. {FIX}"
        )
    return [(row, neg[name]) for name, row in pos.items()]


@dataclass(frozen=True)
class Paired:
    """Rows of b and a on the same units, or the reason why there are none."""

    b: list[Any]
    a: list[Any]
    missing: str

    def read(self, measure: Callable[[list[Any], list[Any]], Reading]) -> Reading:
        """What `measure` makes of b's rows and a's."""
        return Reading.unknown(self.missing) if self.missing else measure(self.b, self.a)

    def over(
        self, pair: Callable[[Any, Any], Any], found: Callable[[ArrayLike], Reading] = mean
    ) -> Reading:
        """The mean, or another reading, of what `pair` makes of a unit's two rows."""
        return self.read(lambda b, a: found([pair(*rows) for rows in zip(b, a, strict=True)]))

    def change(self, value: Callable[[Any], float]) -> Reading:
        """Mean of b's value minus a's."""
        return self.over(lambda one, other: value(one) - value(other))


def in_order(scores: Scores) -> Scores:
    """The same rows in the order of their keys, so that two states pair row by row."""
    rows = {
        field: tuple(sorted(rows_of(scores, field), key=lambda row, key=key: str(key(row))))
        for field, (_, key) in UNITS.items()
    }
    own = {name: tuple(sorted(found, key=lambda row: row.id)) for name, found in scores.own.items()}
    return scores.model_copy(update=rows | {"own": own})


def paired(b: Scores, a: Scores, field: str) -> Paired:
    """What b and a measured in a field of `Scores`, in the order of the keys that pair it.

    Raises:
        UserError: a key twice in one state, or keys that only one state has.
    """
    what = called(field)
    sides = {"b": b, "a": a}
    lacking = [f"{name} ({side.state})" for name, side in sides.items() if not rows_of(side, field)]
    if lacking:
        return Paired([], [], f"no {what} were measured for {' and '.join(lacking)}")
    try:
        pairs = matched(rows_of(in_order(b), field), rows_of(a, field), field)
    except UserError:
        if field in CORE:
            raise
        return Paired([], [], f"the two states were measured on different {what}")
    return Paired([one for one, _ in pairs], [other for _, other in pairs], "")


def _by_key(rows: Sequence[Row], key: Callable[[Row], Hashable], what: str) -> dict[Hashable, Row]:
    found: dict[Hashable, Row] = {}
    for row in rows:
        name = key(row)
        if name in found:
            raise UserError(f"A state holds {name!r} twice among its {what}. Measure each once.")
        found[name] = row
    return found
