"""The curve of doses as a table of the page, with the knee in its place. No HTML, no disk."""

from steerheal.numbers import number
from steerheal.records import CurvePoint, RoundRecord
from steerheal.report.table import Cell, Table, plain, reading


def curve_table(row: RoundRecord) -> Table:
    """A row per dose, and one for the knee where it lies between two."""
    curve = row.curve
    assert curve is not None, "a round without a curve"
    title = f"Round {row.round + 1}: coherent answers by dose, of at most {curve.tokens} tokens"
    heads = [Cell("dose"), Cell("coherent", "share"), Cell("smoothed", "share")]
    rows = [
        [Cell("0", "the student" if row.round else "the base"), *_cells(curve.points[0])],
        *([Cell(number(point.dose)), *_cells(point)] for point in curve.points[1:]),
    ]
    if curve.outcome == "found":
        place = sum(point.dose <= curve.dose for point in curve.points)
        knee = [Cell(number(curve.dose), "the knee"), Cell(""), Cell(number(curve.level))]
        rows.insert(place, knee)
    return Table(title, heads, rows)


def _cells(point: CurvePoint) -> list[Cell]:
    return [reading(point.coherent), plain(point.smooth)]
