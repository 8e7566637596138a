"""A sweep as tables: its runs by headline, settings over seeds, what its runs would share."""

import json
import math
from collections.abc import Sequence
from typing import NamedTuple

from steerheal.config.sweeping import Point, said
from steerheal.numbers import shown
from steerheal.records.sweeping import SweepRecord, SweptRun
from steerheal.report.words import one_line

Rows = list[tuple[str, ...]]
TEXT = ("vector", "push", "dose", "sampling", "filter", "teacher", "teacher_epsilon", "seed")
WHOSE = ("model", "persona", "reverse")
SHARED: dict[str, tuple[str, ...]] = {
    "base": ("measure", "sampling", "filter", "seed", *WHOSE),
    "vector": ("vector", *WHOSE),
    "text": (*TEXT, *WHOSE),
    "heal": ("heal", *TEXT, *WHOSE),
}
"""What two runs have in common before and in their first round, and the settings that decide it."""


class Table(NamedTuple):
    """A table for the terminal."""

    title: str
    columns: tuple[str, ...]
    rows: Rows


def planned(points: Sequence[Point]) -> Table:
    """Every run, and what an earlier one makes for it.

    Only what the settings alone tell: later rounds share what comes out alike.
    """
    seen: dict[str, str] = {}
    rows: Rows = []
    made = dict.fromkeys(SHARED, 0)
    for number, point in enumerate(points, 1):
        whole = point.config.model_dump(mode="json")
        found = []
        for part, names in SHARED.items():
            key = part + json.dumps({name: whole[name] for name in names}, sort_keys=True)
            if key in seen:
                found.append(f"{part} of {seen[key]}")
            else:
                seen[key] = str(number)
                made[part] += 1
        config = point.config
        what = (str(number), config.persona, str(config.seed), said(point.changes))
        rows.append((*what, ", ".join(found) or "nothing"))
    counted = ", ".join(f"{part} {count}" for part, count in made.items())
    title = f"{len(points)} runs; to make of first rounds: {counted}"
    return Table(title, ("run", "persona", "seed", "settings", "shares"), rows)


def by_headline(record: SweepRecord) -> Table:
    """Every run, the largest trait first, failed ones last."""
    rows: Rows = []
    for run in sorted(record.runs, key=_place):
        what = (run.name, run.persona, str(run.seed), said(run.changes))
        if run.status != "finished":
            rows.append((*what, one_line(run.error) or run.status, "", "", "", ""))
            continue
        best = "" if run.round is None else str(run.round + 1)
        rows.append((*what, *map(shown, (run.trait, run.net, run.kl, run.coherence)), best))
    failed = sum(run.status == "failed" for run in record.runs)
    kinds = "; ".join(sorted({run.by for run in record.runs if run.by}))
    counted = f"{record.name}: {len(record.runs)} runs by trait, {failed} failed"
    title = f"{counted}. Trait: {kinds or 'not read'}"
    columns = (
        "run", "persona", "seed", "settings", "Δ trait", "less control", "KL", "coherence", "round",
    )  # fmt: skip
    return Table(title, columns, rows)


def across_seeds(record: SweepRecord) -> Table | None:
    """The settings that ran at two seeds or more, with means over them; None where none did."""
    if not record.means:
        return None
    rows: Rows = [
        (
            mean.persona, said(mean.changes), str(mean.seeds),
            *map(shown, (mean.trait, mean.net, mean.kl, mean.coherence)),
        )
        for mean in sorted(record.means, key=lambda mean: _rank(mean.trait.value))
    ]  # fmt: skip
    columns = ("persona", "settings", "seeds", "Δ trait", "less control", "KL", "coherence")
    return Table("mean over seeds, 95 % t-interval", columns, rows)


def _place(run: SweptRun) -> tuple[bool, float]:
    return run.status != "finished", _rank(run.trait.value)


def _rank(value: float) -> float:
    return math.inf if math.isnan(value) else -value
