"""The table of docs/evidence.md that runs of two rounds on a 1.5B model give (lab/PLAN.md).

Usage: python lab/evidence/larger.py rounds
"""

import gzip
from collections.abc import Callable
from pathlib import Path

from frontier_tables import printed, table

from steerheal.numbers import shown
from steerheal.records import Comparison, Reading, RunRecord

RECORDS = Path(__file__).parent / "records"
PAIRS = (
    ("base", "steered"), ("base", "healed"), ("base", "control"),
    ("control", "healed"), ("steered", "healed"),
)  # fmt: skip
CHANGES = {
    "answer mass": "choice_mass",
    "coherent": "answers_coherent",
    "spill": "control_spill",
    "tasks": "tasks_done",
    "top-1": "top1",
    "KL": "answers_kl",
}


def rounds() -> str:
    """What each state of each round changed at a seed, with intervals over vignettes or answers."""
    lines = []
    for file in sorted(RECORDS.glob("larger-*.json.gz")):
        seed = file.name.removeprefix("larger-").partition(".")[0]
        record = RunRecord.model_validate_json(gzip.decompress(file.read_bytes()))
        for row in record.rounds:
            found = {(item.a, item.b): item for item in row.comparisons}
            lines += [
                [seed, str(row.round + 1), f"{b} less {a}", *_cells(found[a, b])] for a, b in PAIRS
            ]
    return table(["seed", "round", "state", "authority", "care", *CHANGES], lines)


def _cells(item: Comparison) -> list[str]:
    read: list[Reading | None] = [item.delta_nats["authority"], item.delta_nats["care"]]
    read += [item.changes.get(name) for name in CHANGES.values()]
    return [shown(one, signed=True) for one in read]


PARTS: dict[str, Callable[[], str]] = {"rounds": rounds}


def main() -> None:
    """Prints a table."""
    printed(PARTS, __doc__)


if __name__ == "__main__":
    main()
