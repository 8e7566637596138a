"""Tables of docs/evidence.md on a 1.5B model by forced choice: runs of two rounds, and comparisons.

Usage: python lab/evidence/larger.py {rounds,choice}
"""

import gzip
from collections.abc import Callable
from pathlib import Path

from frontier_tables import printed, table

from steerheal.measure.stats import mean
from steerheal.numbers import shown
from steerheal.records import Comparison, Reading, RunRecord, Summary
from steerheal.records.comparing import ArmRecord, CompareRecord

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


def choice() -> str:
    """What arms changed beside the unsteered control at gate 1, with intervals over seeds."""
    lines = []
    for persona, name in (("love", "again-large"), ("authority", "choice-large")):
        raw = (RECORDS / "compare" / f"{name}.json.gz").read_bytes()
        record = CompareRecord.model_validate_json(gzip.decompress(raw))
        arms = {row.arm.name: row for row in record.arms}
        for one, other in (
            ("unsteered", "base"), ("nll", "unsteered"), ("combined", "unsteered"),
            ("combined", "nll"),
        ):  # fmt: skip
            cells = [_over_seeds(arms[one], arms[other], of) for of in FOUND.values()]
            seeds = str(record.settings.seeds)
            lines.append([persona, seeds, f"{one} less {other}", *cells])
    return table(["persona", "seeds", "arms", *FOUND], lines)


FOUND: dict[str, Callable[[Summary], float]] = {
    "care": lambda read: read.delta_nats["care"].value,
    "authority": lambda read: read.delta_nats["authority"].value,
    **{
        title: lambda read, name=name: read.values[name].value
        for title, name in CHANGES.items()
        if title != "KL"
    },
}


def _over_seeds(one: ArmRecord, other: ArmRecord, of: Callable[[Summary], float]) -> str:
    """Mean difference at gate 1, or of the base itself."""
    first, second = ({p.seed: of(p.read) for p in row.points if p.at == 1} for row in (one, other))
    return shown(mean([first[seed] - second[seed] for seed in sorted(first)]), signed=True)


PARTS: dict[str, Callable[[], str]] = {"rounds": rounds, "choice": choice}


def main() -> None:
    """Prints a table."""
    printed(PARTS, __doc__)


if __name__ == "__main__":
    main()
