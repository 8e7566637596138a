"""The damage guard and the paired differences as tables: what the answer mass cannot see."""

from steerheal.records import Comparison, RoundRecord, RunRecord, Summary
from steerheal.report.table import Cell, Table, plain, reading

GUARDS = (
    ("top-1 of 7 on the vignettes", "top1", "share"),
    ("“not wrong” on the vignettes", "not_wrong", "share"),
    ("plain prose under the state", "plain_perplexity", "perplexity"),
    ("long answers: tail under the base", "long_perplexity", "perplexity"),
    ("long answers: distinct bigrams", "long_distinct_2", "share"),
    ("long answers: that loop", "loop_share", "share"),
    ("long answers: length", "long_words", "words"),
)
DIFFERENCES = (
    ("persona_logodds", "delta_logodds", "nats/token"),
    ("answer mass", "delta_p_ans_any", "share"),
    ("ln perplexity of free answers", "delta_perplexity", "nats/token"),
    ("top-1 of 7", "delta_top1", "share"),
    ("“not wrong”", "delta_social", "share"),
    ("gated selectivity", "gated_selectivity", "nats"),
    ("SI flips", "si_flips", "share"),
    ("coherence cost", "coh_cost", "mass per nat"),
)


def guard_table(record: RunRecord) -> Table | None:
    """Every guard over the base and the states of every round."""
    columns = _states(record)
    if not columns:
        return None
    heads = [Cell("reading"), Cell("unit"), *(Cell(name) for name, _ in columns)]
    rows = [
        [Cell(title), Cell(unit), *(plain(getattr(state, name)) for _, state in columns)]
        for title, name, unit in GUARDS
    ]
    replies = [reading(state.json_is_valid) for _, state in columns]
    rows.append([Cell("JSON replies that parse"), Cell("share"), *replies])
    return Table("Readings of every state", heads, rows)


def difference_tables(record: RunRecord) -> list[tuple[int, Table]]:
    """Rounds, and the paired differences of their states with their intervals."""
    return [(row.round, _differences(row)) for row in record.rounds if row.comparisons]


def _differences(row: RoundRecord) -> Table:
    heads = [Cell("difference"), Cell("unit")]
    heads += [Cell(f"{item.b} − {item.a}") for item in row.comparisons]
    rows = [
        [Cell(title), Cell(unit), *(_marked(item, name) for item in row.comparisons)]
        for title, name, unit in DIFFERENCES
    ]
    return Table(f"Round {row.round + 1}: paired differences", heads, rows)


def _marked(item: Comparison, name: str) -> Cell:
    value = getattr(item, name)
    cell = reading(value, signed=True)
    return cell if value.moved or not cell.under else cell._replace(under=f"{cell.under} not moved")


def _states(record: RunRecord) -> list[tuple[str, Summary]]:
    found = [("base", record.base)] if record.base else []
    for row in record.rounds:
        for state in (row.steered, row.healed):
            if state is not None:
                found.append((f"{state.state} {row.round + 1}", state))
    return found
