"""Every reading of every state, and the paired differences between states, as tables."""

from collections.abc import Sequence

from steerheal.measure.readings.table import Entry, listed
from steerheal.records import Comparison, Readings, RoundRecord, RunRecord, Summary
from steerheal.report.table import Cell, Table, reading


def guard_table(record: RunRecord) -> Table | None:
    """Every reading over the base and the states of every round."""
    columns = _states(record)
    if not columns:
        return None
    heads = [Cell("reading"), Cell("unit"), *(Cell(name) for name, _ in columns)]
    rows = [
        [
            Cell(entry.title, under=_worth(record, entry)),
            Cell(entry.unit),
            *(reading(state.values.get(entry.name)) for _, state in columns),
        ]
        for entry in _held([state for _, state in columns], "values")
    ]
    return Table("Readings of every state", heads, rows)


def _worth(record: RunRecord, entry: Entry) -> str:
    """Why a reading says little here, or how well the judge tells that made it."""
    blind = record.sight is not None and entry.name in record.sight.blind
    auc = f"AUC {record.judge.auc:.2f}" if record.judge and entry.judged else ""
    return ", ".join(filter(None, (auc, "blind here" if blind else "")))


def difference_tables(record: RunRecord) -> list[tuple[int, Table]]:
    """Rounds, and the paired differences of their states with their intervals."""
    return [(row.round, _differences(row)) for row in record.rounds if row.comparisons]


def _differences(row: RoundRecord) -> Table:
    heads = [Cell("difference"), Cell("unit")]
    heads += [Cell(f"{item.b} − {item.a}") for item in row.comparisons]
    rows = [
        [
            Cell(entry.title),
            Cell(entry.difference_unit),
            *(_marked(item, entry.name) for item in row.comparisons),
        ]
        for entry in _held(row.comparisons, "changes")
    ]
    return Table(f"Round {row.round + 1}: paired differences", heads, rows)


def _held(records: Sequence[Readings], kind: str) -> list[Entry]:
    """The entries that any of the records holds."""
    return listed(dict.fromkeys(name for item in records for name in getattr(item, kind)))


def _marked(item: Comparison, name: str) -> Cell:
    value = item.changes.get(name)
    cell = reading(value, signed=True)
    moved = value is not None and value.moved
    return cell if moved or not cell.under else cell._replace(under=f"{cell.under} not moved")


def _states(record: RunRecord) -> list[tuple[str, Summary]]:
    found = [("base", record.base)] if record.base else []
    for row in record.rounds:
        for state in (row.steered, row.healed, row.control.read if row.control else None):
            if state is not None:
                found.append((f"{state.state} {row.round + 1}", state))
    return found
