"""How a ranking of directions is shown."""

from collections.abc import Sequence

from steerheal.console import Console
from steerheal.numbers import shown
from steerheal.records import RankRow


def show(rows: Sequence[RankRow], title: str, console: Console) -> None:
    """The ranking as a table."""
    columns = (
        "method", "contrast", "wordings", "band", "cosine, held-out wordings",
        "cosine, training wordings", "trait/√KL", "of at most", "KL",
    )  # fmt: skip
    cells = [
        (
            row.method,
            row.contrast,
            row.wordings,
            row.band,
            shown(row.read.held_out, 2),
            shown(row.read.cosine, 2),
            shown(row.read.per_root_kl),
            shown(row.read.optimum.value),
            shown(row.read.kl, 4),
        )
        for row in rows
    ]
    console.table(f"{title} · Fisher cosine with the trait, 95 % intervals", columns, cells)
