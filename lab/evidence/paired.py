"""Answers of two arms of a comparison at equal trait, read blind by docs/labels.md.

`texts` takes the answers out of a run folder, `sheet` writes what is read (sheet.txt), `join` puts
labels.txt and whose they are together. A label is a line per pair: its number, which answer is
better (A, B or =), then of A and of B whether it is coherent, and of both whether it acts (0, 1 or
?). The other parts print tables of docs/evidence.md.
Usage: python lab/evidence/paired.py PART
       python lab/evidence/paired.py {texts,sheet,join} --of PART --out DIR
"""

import argparse
import gzip
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from frontier_tables import said, table

from steerheal.measure.stats import mean
from steerheal.records import Reading
from steerheal.records.comparing import CompareRecord

RECORDS = Path(__file__).parent / "records" / "compare"
OURS = "nll"
METHODS = {"again-large": ("combined",), "again-reverse": ("combined", "online", "preference")}
SECOND = "-second"
"""What follows a comparison's name where its pairs are read once more."""
PAIRS_PER_SEED = 5
SEED = 20_261_127
Row = dict[str, Any]
Curves = dict[str, dict[int, dict[float, float]]]


def answers(name: str) -> Path:
    """Where a comparison's answers are kept."""
    return RECORDS / f"{name}.answers.jsonl.gz"


def labels(part: str) -> Path:
    """Where what a reading says of its pairs is kept."""
    return RECORDS / f"{part}.blind.jsonl"


def traits(name: str) -> Curves:
    """Held-out trait per arm, seed and gate."""
    raw = gzip.decompress((RECORDS / f"{name}.json.gz").read_bytes())
    found: Curves = {}
    for arm in CompareRecord.model_validate_json(raw).arms:
        for point in arm.points:
            trait = point.read.values["trait_held_out"].value
            found.setdefault(arm.arm.name, {}).setdefault(point.seed, {})[point.at] = trait
    return found


def gates(found: Curves, method: str, seed: int) -> dict[str, float]:
    """The method at gate 1, or the largest gate that the front reaches, and the front's nearest."""
    front, own = found[OURS][seed], found[method][seed]
    reached = [gate for gate in own if gate <= 1 and own[gate] <= max(front.values())]
    at = max(reached, default=min(own))
    return {method: at, OURS: min(front, key=lambda gate: abs(front[gate] - own[at]))}


def texts(name: str, folder: Path) -> None:
    """The answers of the arms at every gate, out of a run folder."""
    lines = []
    for file in sorted(folder.glob("seed-*/*/round-01/gate-*.json")):
        seed, arm = int(file.parts[-4].removeprefix("seed-")), file.parts[-3]
        if arm in {OURS, *METHODS[name]}:
            found = [one["completion"] for one in json.loads(file.read_text())["persona"]]
            lines.append(json.dumps({
                "seed": seed, "arm": arm, "at": float(file.stem.removeprefix("gate-")),
                "answers": [[one["prompt"], one["text"]] for one in found],
            }))  # fmt: skip
    answers(name).write_bytes(gzip.compress("\n".join(lines).encode() + b"\n", mtime=0))


def key(name: str) -> list[Row]:
    """The pairs in the order of the sheet, with whose they are; the same every time."""
    dice, found, items = random.Random(SEED), traits(name), []
    asked = len(next(iter(written(name).values())))
    for method in METHODS[name]:
        prompts = dice.sample(range(asked), asked)
        for place, seed in enumerate(sorted(found[OURS])):
            both = gates(found, method, seed)
            for turn in range(PAIRS_PER_SEED):
                answer = prompts[(place * PAIRS_PER_SEED + turn) % asked]
                order = dice.sample(sorted(both), 2)
                items.append({"seed": seed, "answer": answer, "arms": order,
                              "gates": [both[arm] for arm in order]})  # fmt: skip
    dice.shuffle(items)
    return [{"id": number, **item} for number, item in enumerate(items, 1)]


def written(name: str) -> dict[tuple[int, str, float], list[list[str]]]:
    """Prompts and answers per seed, arm and gate."""
    rows = map(json.loads, gzip.decompress(answers(name).read_bytes()).decode().splitlines())
    return {(row["seed"], row["arm"], row["at"]): row["answers"] for row in rows}


def sheet(name: str, folder: Path) -> None:
    """What is read."""
    folder.mkdir(parents=True, exist_ok=True)
    found, blocks = written(name), []
    for item in key(name):
        shown = [
            found[item["seed"], arm, gate][item["answer"]]
            for arm, gate in zip(item["arms"], item["gates"], strict=True)
        ]
        lines = [f"{mark}: " + " / ".join(text.splitlines())
                 for mark, (_, text) in zip("AB", shown, strict=True)]  # fmt: skip
        blocks.append("\n".join([f"#{item['id']} {shown[0][0]}", *lines]))
    (folder / "sheet.txt").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def join(part: str, folder: Path) -> None:
    """Labels and key, a pair per line; every pair must have its one label."""
    lines = (folder / "labels.txt").read_text(encoding="utf-8").splitlines()
    given = {int(number): label for number, *label in map(str.split, lines)}
    items = key(part.removesuffix(SECOND))
    assert len(lines) == len(given), "a pair has two labels"
    assert given.keys() == {item["id"] for item in items}, "every pair needs a label, and no other"
    for item in items:
        better, *marks = given[item["id"]]
        assert better in {"A", "B", "="}, item["id"]
        assert len(marks) == 4, item["id"]
        assert set(marks) <= {"0", "1", "?"}, item["id"]
        item |= {"better": better, "coherent": marks[:2], "acts": marks[2:]}
    labels(part).write_text("\n".join(map(json.dumps, items)) + "\n", encoding="utf-8")


MARKS: dict[str, Callable[[Row, int], float]] = {
    "coherent": lambda item, i: float(item["coherent"][i] == "1"),
    "acts": lambda item, i: float(item["acts"][i] == "1"),
    "both": lambda item, i: float(item["coherent"][i] == item["acts"][i] == "1"),
    "better": lambda item, i: 0.5 if item["better"] == "=" else float(item["better"] == "AB"[i]),
}


def shares(part: str) -> str:
    """Per arm the shares that the reader called coherent and acting; per pair which is better."""
    name = part.removesuffix(SECOND)
    found, rows = traits(name), []
    marks = {
        **MARKS,
        "trait": lambda item, i: found[item["arms"][i]][item["seed"]][item["gates"][i]],
    }
    read = [json.loads(line) for line in labels(part).read_text(encoding="utf-8").splitlines()]
    for method in METHODS[name]:
        items = [item for item in read if method in item["arms"]]
        for title, mark in marks.items():
            values = [
                (mark(item, item["arms"].index(method)), mark(item, item["arms"].index(OURS)))
                for item in items
            ]
            cells = [mean([a for a, _ in values]), mean([b for _, b in values]),
                     _over_seeds(items, [a - b for a, b in values])]  # fmt: skip
            digits = 4 if title == "trait" else 2
            rows.append([f"{method}: {title}", *(said(cell, digits) for cell in cells)])
    return table(["40 pairs each", "method", OURS, "difference, over seeds"], rows)


def _over_seeds(items: list[Row], values: list[float]) -> Reading:
    """The mean of each seed's pairs, with a t-interval over seeds."""
    per: dict[int, list[float]] = {}
    for item, value in zip(items, values, strict=True):
        per.setdefault(item["seed"], []).append(value)
    return mean([sum(one) / len(one) for one in per.values()])


PARTS: dict[str, Callable[[], str]] = {
    part: partial(shares, part) for part in ("again-large", f"again-large{SECOND}", "again-reverse")
}


def main() -> None:
    """Takes the answers, writes the sheet, joins labels and key, or prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("texts", "sheet", "join", *PARTS))
    parser.add_argument("--of", choices=tuple(PARTS), default="again-large")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.part in PARTS:
        print(PARTS[options.part]())
    else:
        of = options.of if options.part == "join" else options.of.removesuffix(SECOND)
        {"texts": texts, "sheet": sheet, "join": join}[options.part](of, options.out)


if __name__ == "__main__":
    main()
