"""The report's tables as cells of text, with the reason for every dash. No HTML, no disk."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from steerheal.measure.readings.table import played
from steerheal.numbers import UNKNOWN, interval, number
from steerheal.records import (
    FOUNDATIONS,
    Part,
    Reading,
    RoundRecord,
    RunRecord,
    Summary,
    WalkStep,
)
from steerheal.report import control
from steerheal.report.words import one_line


class Cell(NamedTuple):
    """What a table shows in one place."""

    text: str
    under: str = ""
    """Second, smaller line."""
    why: str = ""
    """Shown in a note under the table: why the value is unknown, or what it is made of."""


class Column(NamedTuple):
    """A column of the round table."""

    head: str
    unit: str
    meaning: str
    cell: Callable[[RoundRecord], Cell]
    part: Part = ""
    """What has its unit, where that is a run's own."""


class Table(NamedTuple):
    """A heading row and rows of cells; the first cell of a row names it."""

    title: str
    heads: list[Cell]
    rows: list[list[Cell]]

    @property
    def notes(self) -> list[str]:
        """What its cells say under the table, each sentence once, in the order of the cells."""
        return list(dict.fromkeys(cell.why for row in self.rows for cell in row if cell.why))


def plain(value: float, why: str = "") -> Cell:
    """A bare number; `why` is said when it is NaN."""
    return Cell(number(value), why=(why or "not measured") if math.isnan(value) else "")


def reading(value: Reading | None, *, signed: bool = False, why: str = "") -> Cell:
    """A value over its interval."""
    if value is None:
        return Cell(UNKNOWN, why=why or "not measured")
    reason = one_line(value.reason) or why or "no reason was recorded"
    known = not math.isnan(value.value)
    return Cell(number(value.value, signed=signed), interval(value), "" if known else reason)


def _of(state: str, read: Callable[[Summary], Cell]) -> Callable[[RoundRecord], Cell]:
    def cell(row: RoundRecord) -> Cell:
        summary = row.steered if state == "steered" else row.healed
        if summary is None:
            return Cell(UNKNOWN, why=f"{state} was not evaluated: the round is {row.outcome}")
        return read(summary)

    return cell


def trait_cell(summary: Summary) -> Cell:
    """The trait over its change from the base."""
    value, delta = summary.trait, summary.gain
    if summary.state == "base" or math.isnan(delta.value):
        return reading(value)
    return reading(value)._replace(
        under=f"Δ {number(delta.value, signed=True)} {interval(delta)}".rstrip()
    )


def coherence_cell(summary: Summary) -> Cell:
    """What coherence is read by, over the base's, over its own value."""
    why = one_line(summary.mass.reason) or "the base has no answer mass to compare with"
    mass = number(summary.mass.value)
    return plain(summary.coherence, why)._replace(under=f"mass {mass}")


def _control_cell(row: RoundRecord) -> Cell:
    """The trait of the unsteered control, over healed less control."""
    if row.control is None or row.control.read is None:
        return Cell(UNKNOWN, why=control.lacking(row))
    less = row.over_control
    under = "" if less is None else f"healed {number(less.value, signed=True)} {interval(less)}"
    return reading(row.control.read.trait)._replace(under=under.rstrip())


def surgical_cell(summary: Summary) -> Cell:
    """Whether the target moved more than every off-target."""
    if summary.surgical is None:
        return Cell(UNKNOWN, why="the target foundation is not shown to have moved")
    return Cell("yes" if summary.surgical else "no")


def survival(step: WalkStep) -> str:
    """Kept over drawn at one dose."""
    return number(step.kept / step.drawn if step.drawn else math.nan)


def walk_cell(row: RoundRecord) -> Cell:
    """The doses tried, over the share that survived at each."""
    if not row.walk:
        return Cell(UNKNOWN, why="no dose was tried")
    return Cell(
        " → ".join(number(step.multiplier) for step in row.walk),
        " → ".join(survival(step) for step in row.walk),
    )


def _kl(row: RoundRecord, value: float) -> Cell:
    return plain(value, f"not measured: the round is {row.outcome}")


def _healed_reading(row: RoundRecord, value: Reading | None) -> Cell:
    return reading(value, why=f"not measured: the round is {row.outcome}")


def _internalised(row: RoundRecord) -> Cell:
    found = row.internalised
    if found is None:
        return Cell(UNKNOWN, why="nothing was folded")
    blocks = ", ".join(f"block {i}: {number(value)}" for i, value in found.cosine.items())
    blocks = f"round {row.round + 1}, cosine {blocks}"
    return Cell(number(found.mean_cosine), f"{number(found.mean_share)} ‖v‖", why=blocks)


COURSE = (
    Column(
        "dose",
        "of the vector",
        "the round's dose: its texts are written at several multiples of it",
        lambda row: plain(row.multiplier),
    ),
    Column("walk", "survival", "doses walk-C tried, over the share kept at each", walk_cell),
    Column(
        "kept",
        "of drawn",
        "completions the filter kept",
        lambda row: Cell(str(row.kept), f"of {row.drawn}"),
    ),
    Column(
        "steered trait",
        "nats/token",
        "the trait with the hook on, over its change from the base",
        _of("steered", trait_cell),
        "trait",
    ),
    Column(
        "healed trait",
        "nats/token",
        "the same after healing, without any hook",
        _of("healed", trait_cell),
        "trait",
    ),
    Column(
        "control trait",
        "nats/token",
        "the same after the same heal on unsteered text; under it healed less control",
        _control_cell,
        "trait",
    ),
    Column(
        "steered coherence",
        "share of base",
        "what coherence is read by over the base's, with the hook on",
        _of("steered", coherence_cell),
    ),
    Column(
        "healed coherence", "share of base", "the same after healing", _of("healed", coherence_cell)
    ),
)
"""What went into a round, and the trait and coherence that came out."""

PRICE = (
    Column(
        "retain",
        "share",
        "healed over steered gain of trait in this round; near 0 is an undo",
        lambda row: _healed_reading(row, row.retain),
    ),
    Column(
        "net retain",
        "share",
        "healed less unsteered control, over the steered gain: without what training alone does",
        lambda row: reading(row.control.retain if row.control else None, why=control.lacking(row)),
    ),
    Column(
        "recovered",
        "share",
        "lost coherence that the heal bought back; 1 is all of it",
        lambda row: _healed_reading(row, row.recovered),
    ),
    Column(
        "cost",
        "share/nat",
        "coherence lost per nat (per token, of log-odds) of trait, healed against base; lower is "
        "better",
        _of("healed", lambda summary: reading(summary.cost)),
    ),
    Column(
        "of the prompt",
        "share",
        "healed change of the trait over what the persona's system prompt changes in the base",
        _of("healed", lambda summary: reading(summary.of_prompt)),
    ),
    Column(
        "surgical",
        "",
        "the target foundation moved as meant, and more than every off-target",
        _of("healed", surgical_cell),
    ),
    Column(
        "cos(v_r, v₀)",
        "",
        "cosine of this round's vector with the first round's; below 0.5 the direction wanders",
        lambda row: plain(row.direction_cosine),
    ),
    Column(
        "internalised",
        "cos",
        "cosine of the healed student's own shift under a neutral prompt with the round's vector, "
        "mean over the steered blocks; under it the shift along the vector in ‖v‖",
        _internalised,
    ),
    Column(
        "KL round",
        "nats/token",
        "KL(student‖student before the round) on the student's own answers",
        lambda row: _kl(row, row.kl_round),
    ),
    Column(
        "KL sum",
        "nats/token",
        "KL round summed over the rounds so far",
        lambda row: _kl(row, row.kl_cumulative),
    ),
)
"""What the heal kept, bought back and cost."""


def rounds_table(record: RunRecord, title: str, columns: Sequence[Column]) -> Table:
    """Every round, a column per reading; the base first where it has one."""
    heads = [Cell("round"), *(Cell(column.head, _unit(record, column)) for column in columns)]
    rows = [
        [_round_name(record, row), *(column.cell(row) for column in columns)]
        for row in record.rounds
    ]
    if record.base and columns is COURSE:
        known = {
            "healed trait": trait_cell(record.base),
            "healed coherence": coherence_cell(record.base),
        }
        cells = [known.get(column.head, Cell("")) for column in columns]
        rows.insert(0, [Cell("base"), *cells])
    return Table(title, heads, rows)


def _unit(record: RunRecord, column: Column) -> str:
    if record.base is None or not column.part:
        return column.unit
    return played(record.base, column.part).unit


def _round_name(record: RunRecord, row: RoundRecord) -> Cell:
    star = " ★" if row.round == record.best else ""
    return Cell(f"{row.round + 1}{star}", row.outcome)


def foundations_tables(record: RunRecord) -> list[tuple[int, Table]]:
    """Rounds, and nats per foundation of base, steered, healed; -1 is a table of the base alone."""
    if record.base is None:
        return []
    tables = [
        (row.round, _foundations(f"Round {row.round + 1}", record.base, row))
        for row in record.rounds
        if row.steered or row.healed
    ]
    return tables or [(-1, _foundations("Base", record.base, None))]


def _foundations(title: str, base: Summary, row: RoundRecord | None) -> Table:
    heads = [Cell("foundation"), Cell("base", "nats")]
    heads += (
        [Cell(head, "nats") for head in ("steered", "change", "healed", "change")] if row else []
    )
    states = [row.steered, row.healed] if row else []
    less = row.beyond_control if row else None
    if row and row.control and less:
        states.append(row.control.read)
        heads += [Cell("control", "nats"), Cell("change", "nats"), Cell("healed − control", "nats")]
    rows = []
    for name in FOUNDATIONS:
        cells = [Cell(name), plain(base.nats.get(name, math.nan), "not read")]
        for summary in states:
            cells += _nats_cells(summary, name)
        if less:
            cells.append(reading(less.delta_nats.get(name), signed=True, why="not read"))
        rows.append(cells)
    return Table(title, heads, rows)


def _nats_cells(summary: Summary | None, name: str) -> list[Cell]:
    if summary is None:
        return [Cell(UNKNOWN, why="not evaluated")] * 2
    value = summary.nats.get(name, math.nan)
    return [
        plain(value, "not read"),
        reading(summary.delta_nats.get(name), signed=True, why="not read"),
    ]


def heals_table(record: RunRecord) -> Table:
    """How every round's heal went."""
    heads = [Cell("round"), Cell("trained on", "completions"), Cell("held out", "completions")]
    heads += [Cell("λ"), Cell("barrier fired", "share of steps"), Cell("held-out CE", "nats/token")]
    heads += [Cell("outcome")]
    rows = []
    for row in record.rounds:
        if row.heal is None:
            rows.append([Cell(str(row.round + 1)), *[Cell(UNKNOWN, why=f"{row.outcome}")] * 6])
            continue
        log = row.heal
        why = "no barrier" if log.steps else "no step was taken"
        cells = [
            Cell(str(log.trained_on)),
            Cell(str(log.held_out_completions), why=one_line(log.held_out_reason)),
            plain(log.lam, "no barrier"),
            plain(log.barrier_fired, why),
        ]
        cells += [Cell(_trend(log.held_out)), Cell(log.outcome, one_line(log.reason))]
        rows.append([Cell(str(row.round + 1)), *cells])
    return Table("How every round was trained", heads, rows)


def _trend(values: Sequence[float]) -> str:
    return " → ".join(number(value) for value in values) or UNKNOWN


def stages_table(record: RunRecord) -> Table:
    """Every finished stage, what it took, and whether it was read from an earlier run."""
    heads = [Cell("stage"), Cell("round"), Cell("time", "s"), Cell("memory", "GB")]
    rows = [
        [
            Cell(one_line(mark.name), under="reused" if mark.reused else "made"),
            Cell("base" if mark.round < 0 else str(mark.round + 1)),
            plain(mark.seconds),
            plain(mark.memory / 1e9 if mark.memory else math.nan, "not known here"),
        ]
        for mark in record.stages
    ]
    total = sum(mark.seconds for mark in record.stages if not mark.reused)
    rows.append([Cell("made in this run"), Cell(""), plain(total), Cell("")])
    return Table("Stages and what they took: the most memory held, weights included", heads, rows)
