"""A run folder as one self-contained page, with its figures beside it. Reads records, no model.

Whatever a model, prompt or file wrote is data: the template escapes every value, and shows
control characters instead of passing them on.
"""

import json
from pathlib import Path
from typing import NamedTuple

from steerheal import disk, store
from steerheal.measure.readings.table import listed
from steerheal.numbers import interval, number
from steerheal.records import HealLog, OnTest, RoundRecord, RunRecord
from steerheal.report import axis, draw, guard, samples, table, theme
from steerheal.report.curve import curve_table
from steerheal.report.files import attempt, lacking
from steerheal.report.headline import (
    Condition,
    conditions,
    headline,
    headline_parts,
    selected,
    stuck,
)
from steerheal.report.plates import PLATES, Plate
from steerheal.report.rendering import rendered
from steerheal.report.samples import shown_differs
from steerheal.report.words import at, chosen, free_change, one_line, persona_name, setting, visible

__all__ = ["Condition", "conditions", "headline", "lacking", "shown_differs", "write_report"]


ENDED = {
    "running": "the run has not finished",
    "finished": "the run had ended",
    "interrupted": "the run was interrupted",
    "failed": "the run failed",
}


PRINTED = 2
"""Show prompts whose answers are printed; the rest is on the screen."""


class Picture(NamedTuple):
    """A figure on the page."""

    title: str
    seen: str
    """What is seen, in numbers."""
    how: str
    """How it is read."""
    drawing: str
    """SVG in the page's colours; empty when it is not drawn."""
    lacks: str
    """Why it is not drawn."""


def write_report(folder: Path) -> Path:
    """Writes figures/ and report.html beside run.json; returns the page's path.

    Raises:
        UserError: not a run folder, or one that cannot be written.
    """
    record = _with_heals(folder, store.read_run(folder))
    pictures = [_picture(folder / "figures", plate, record) for plate in PLATES]
    page = folder / "report.html"
    disk.write_text(page, _render(folder, record, pictures))
    return page


def _with_heals(folder: Path, record: RunRecord) -> RunRecord:
    """The record with heals that a stopped run finished but did not note in it."""

    def filled(row: RoundRecord) -> RoundRecord:
        if row.heal is not None:
            return row
        log = attempt(folder, lambda: store.read_heal(folder, row.round))
        return row.model_copy(update={"heal": log}) if isinstance(log, HealLog) else row

    return record.model_copy(update={"rounds": tuple(filled(row) for row in record.rounds)})


def _picture(folder: Path, plate: Plate, record: RunRecord) -> Picture:
    lacks = plate.lacks(record)
    if lacks:
        return Picture(plate.title, "", plate.how, "", lacks)
    figure, seen = plate.draw(record), visible(plate.seen(record))
    vector = draw.svg(figure, plate.name)
    disk.write_text(folder / f"{plate.name}.svg", vector)
    disk.write_bytes(folder / f"{plate.name}.png", draw.png(figure))
    drawing = theme.inline(vector, plate.name, f"{plate.title}. {seen}")
    return Picture(plate.title, seen, plate.how, drawing, "")


def _render(folder: Path, record: RunRecord, pictures: list[Picture]) -> str:
    held = conditions(record, shown_differs(folder, record))
    row = chosen(record)
    return rendered(
        "template.html.j2",
        record=record,
        headline=headline_parts(record),
        verdict=_verdict(record, held),
        conditions=held,
        facts=_facts(record),
        environment=sorted(record.environment.items()),
        poles=_poles(record),
        missing=_missing(record) + [visible(text) for text in lacking(folder, record)],
        stages=table.stages_table(record),
        rounds=[
            (table.rounds_table(record, title, columns), columns)
            for title, columns in (
                ("What went in and what came out", table.COURSE),
                ("What healing kept, bought back and cost", table.PRICE),
            )
        ],
        curves={
            row.round: (row.curve.words(), curve_table(row)) for row in record.rounds if row.curve
        },
        selected=selected(record),
        best=-1 if row is None else row.round,
        pictures=pictures,
        heals=table.heals_table(record),
        diary=samples.diary(folder, record),
        filtered=samples.filtered(folder, record),
        borderline=samples.BORDERLINE,
        on_paper=PRINTED,
        foundations=table.foundations_tables(record),
        guard=guard.guard_table(record),
        differences=guard.difference_tables(record),
        config=json.dumps(record.model_dump(mode="json")["config"], indent=2, ensure_ascii=False),
    )


def _verdict(record: RunRecord, held: list[Condition]) -> str:
    row = chosen(record)
    wrong = row is not None and row.healed is not None and axis.backwards(record, row.healed)
    if wrong or any(condition.holds is False for condition in held):
        return "bad"
    return "good" if all(condition.holds for condition in held) else "unknown"


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    return [
        ("run", record.name),
        ("status", record.status + (f": {one_line(record.outcome)}" if record.outcome else "")),
        ("model", str(setting(record, "model", "name") or "the embedded one")),
        ("persona", f"{persona_name(record)}: {at(record.persona, 'title') or ''}".rstrip(": ")),
        ("contrast", f"positive against {setting(record, 'vector', 'contrast') or 'unknown'}"),
        *([("text written by", written)] if (written := _written(record)) else []),
        ("rounds", f"{len(record.rounds)} of at most {setting(record, 'rounds') or '?'}"),
        *([("best round", record.best_reason)] if record.best_reason else []),
        ("test prompts", _tested(record)),
        *([("judge", record.judge.words())] if record.judge else []),
        ("seed", str(setting(record, "seed"))),
    ]


def _written(record: RunRecord) -> str:
    """Which state wrote each round's text, at its largest dose, and how it was chosen."""
    rounds = [row for row in record.rounds if row.written_by]
    how = f"{setting(record, 'filter', 'pick')} of {setting(record, 'filter', 'best_of')}"
    return "; ".join(
        f"round {row.round + 1}: {row.written_by}"
        + (f" ({how}: {number(row.passed_over)} passed over)" if row.passed_over else "")
        for row in rounds
    )


def _tested(record: RunRecord) -> str:
    """What was read on the prompts that chose nothing."""
    found = record.test
    if found is None:
        return f"none: {record.test_reason}"
    said = (
        f"{found.prompts}, read once, by the base and by round {found.round + 1}: "
        f"{', '.join(_on_test(found))}"
    )
    if found.control is None or found.over_control is None:
        return said
    return (
        f"{said}; its unsteered control: {free_change(found.control)}, the round less its "
        f"control: {free_change(found.over_control)}"
    )


def _on_test(found: OnTest) -> list[str]:
    """What changed on the test prompts, and how far from the base it is."""
    brief = [entry for entry in listed(found.changes) if entry.brief]
    said = [
        (f"change of {entry.title}", entry.difference_unit, found.changes[entry.name], True)
        for entry in brief
    ]
    said += [
        (entry.title, entry.unit, found.values[entry.name], False)
        for entry in listed(found.values)
        if entry.name == found.heads.get("distance")
    ]
    return [
        f"{title} {number(item.value, signed=signed)} {unit} {interval(item)}".rstrip()
        for title, unit, item, signed in said
    ]


def _poles(record: RunRecord) -> list[tuple[str, str]]:
    names = ("positive", "negative", "neutral")
    found = [(name, at(record.persona, name)) for name in names]
    return [(name, str(text)) for name, text in found if text]


def _missing(record: RunRecord) -> list[str]:
    """A sentence for everything a finished run would have and this one has not."""
    why = ENDED[record.status]
    said = [] if record.base else [f"The base was not evaluated: {why}."]
    for row in record.rounds:
        reason = stuck(record, row) or f"{why[:1].upper()}{why[1:]} before it was evaluated."
        states = [("steered", row.steered), ("healed", row.healed)]
        if setting(record, "read_steered") is False:
            states = states[1:]
        absent = " or ".join(name for name, summary in states if summary is None)
        if absent:
            said.append(f"Round {row.round + 1} has no {absent} reading. {reason}")
    planned = setting(record, "rounds")
    if isinstance(planned, int) and len(record.rounds) < planned:
        end = one_line(record.outcome) or why
        left = planned - len(record.rounds)
        what = "1 planned round was" if left == 1 else f"{number(left)} planned rounds were"
        said.append(f"{what} not run: {end}.")
    return said
