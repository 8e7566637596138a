"""Tables of a report as LaTeX and as Markdown, with the notes that their dashes have."""

from collections.abc import Sequence

from steerheal.report.paper.escape import inline, latex, markdown
from steerheal.report.table import Cell, Table


def as_markdown(table: Table) -> str:
    """A pipe table under its title, a value with its interval in one cell."""

    def row(cells: Sequence[Cell]) -> str:
        return f"| {' | '.join(inline(_whole(cell)) for cell in cells)} |"

    lines = [row(table.heads), "|---" * len(table.heads) + "|", *map(row, table.rows)]
    notes = [f"- {markdown(note)}" for note in table.notes]
    return "\n\n".join([f"**{markdown(table.title)}**", "\n".join(lines), *_block(notes), ""])


def as_latex(table: Table, label: str) -> str:
    """A floating table no wider than its column; it needs booktabs and adjustbox."""

    def row(texts: Sequence[str]) -> str:
        return f"{' & '.join(map(latex, texts))} \\\\"

    columns = "l" * len(table.heads)
    units = [cell.under for cell in table.heads]
    lines = [
        r"\begin{table}[tbp]",
        f"\\caption{{{latex(table.title)}}}\\label{{tab:{label}}}",
        r"\centering\small",
        r"\begin{adjustbox}{max width=\linewidth}",
        f"\\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        row([cell.text for cell in table.heads]),
        *([row(units)] if any(units) else []),
        r"\midrule",
        *(row([_whole(cell) for cell in cells]) for cells in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{adjustbox}",
        *(f"\\par\\footnotesize {latex(note)}" for note in table.notes),
        r"\end{table}",
        "",
    ]
    return "\n".join(lines)


def _whole(cell: Cell) -> str:
    return f"{cell.text} {cell.under}".strip()


def _block(lines: list[str]) -> list[str]:
    return ["\n".join(lines)] if lines else []
