"""Answers of the kept lines, read blind by docs/labels.md, and what the labels say.

`sheet` writes what is read (sheet.txt) and, apart, whose it is (key.jsonl); `join` puts labels
("number label", a line per item, in labels.txt) and key together into the records. The other parts
print the tables of docs/evidence.md.
Usage: python lab/evidence/blind.py PART
       python lab/evidence/blind.py sheet --out DIR
       python lab/evidence/blind.py join --out DIR
"""

import argparse
import gzip
import json
import random
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from frontier_tables import LARGE, RECORDS, SMALL, broken, chosen, said, seeds, table

from steerheal.filter.coherent import APART
from steerheal.measure.stats import mean, share, share_change

JOINED = RECORDS / "blind.jsonl"
MODELS = {"love": SMALL, "authority": LARGE}
STATES = ("base", "steered", "healed")
CONTRASTS = ("best", "anchor")
PAIRS_PER_SEED = 5
SEED = 20_261_126
Row = dict[str, Any]


@cache
def lines(persona: str) -> list[dict[str, Row]]:
    """Per seed its states that have answers, whole."""
    found = []
    for file in sorted(RECORDS.glob(f"{MODELS[persona]}*-{persona}-s[0-9].jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as stream:
            rows = map(json.loads, stream)
            found.append({row["state"]: row for row in rows if "answers" in row})
    return found


# ── sheet and key ────────────────────────────────────────────────────────────────────────────────


def singles(persona: str, dice: random.Random) -> list[Row]:
    """Every prompt once in three states, seeds in turn, the draw by chance."""
    numbered = list(enumerate(seeds(MODELS[persona], persona)))
    answers = lines(persona)[0]["base"]["answers"]
    asked = len({one["prompt"] for one in answers})
    found = []
    for prompt in range(asked):
        place, seed = numbered[prompt % len(numbered)]
        answer = prompt + asked * dice.randrange(len(answers) // asked)
        names = {"base": "base", "steered": broken(seed), "healed": "none 1"}
        found += [
            {"set": persona, "seed": place, "answer": answer, "role": role, "state": names[role]}
            for role in STATES
        ]
    dice.shuffle(found)
    return found


def nearest(seed: dict[str, Row], trait: float) -> str:
    """The gate of `none` whose held-out trait is nearest."""
    gates = [name for name, one in seed.items() if one.get("arm") == "none" and "trait" in one]
    return min(gates, key=lambda name: abs(seed[name]["trait"] - trait))


def pairs(dice: random.Random) -> list[Row]:
    """Per contrast and seed five prompts, method and gate in an order by chance."""
    found = []
    for contrast in CONTRASTS:
        prompts = list(range(len(lines("love")[0]["base"]["answers"])))
        dice.shuffle(prompts)
        for place, seed in enumerate(seeds(SMALL, "love")):
            method = chosen(seed, contrast)
            both = [method, nearest(seed, seed[method]["trait"])]
            for _ in range(PAIRS_PER_SEED):
                found.append({"set": contrast, "seed": place, "answer": prompts.pop(),
                              "states": dice.sample(both, 2), "method": method})  # fmt: skip
    dice.shuffle(found)
    return found


def key() -> list[Row]:
    """All items in the order of the sheet, with whose they are; the same every time."""
    dice = random.Random(SEED)
    items = [*singles("love", dice), *singles("authority", dice), *pairs(dice)]
    return [{"id": number, **item} for number, item in enumerate(items, 1)]


def sheet(folder: Path) -> None:
    """What is read, and the key beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks = []
    for item in key():
        whole = lines(item["set"] if item["set"] in MODELS else "love")[item["seed"]]
        shown = [
            whole[state]["answers"][item["answer"]]
            for state in item.get("states", [item.get("state")])
        ]
        marks = ("A: ", "B: ") if len(shown) > 1 else ("",)
        texts = [
            mark + " / ".join(one["text"].splitlines())
            for mark, one in zip(marks, shown, strict=True)
        ]
        blocks.append("\n".join([f"#{item['id']} {shown[0]['prompt']}", *texts]))
    (folder / "sheet.txt").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    (folder / "key.jsonl").write_text("\n".join(map(json.dumps, key())) + "\n", encoding="utf-8")


def join(folder: Path) -> None:
    """Labels and key, an item per line; every item must have its one label."""
    given: dict[int, list[str]] = {}
    for line in (folder / "labels.txt").read_text(encoding="utf-8").splitlines():
        number, *label = line.split()
        assert int(number) not in given, f"item {number} has two labels"
        given[int(number)] = label
    items = [json.loads(line) for line in (folder / "key.jsonl").read_text().splitlines()]
    assert given.keys() == {item["id"] for item in items}, "every item needs a label, and no other"
    for item in items:
        label = given[item["id"]]
        if "states" in item:
            (item["better"],) = label
            assert item["better"] in {"A", "B", "="}, item["id"]
        else:
            coherent, item["acts"] = label
            item["coherent"] = int(coherent)
            assert item["acts"] in {"0", "1", "?"}, item["id"]
    JOINED.write_text("\n".join(map(json.dumps, items)) + "\n", encoding="utf-8")


# ── tables ───────────────────────────────────────────────────────────────────────────────────────


def labelled(name: str) -> list[Row]:
    """The items of a set, with their labels."""
    items = map(json.loads, JOINED.read_text(encoding="utf-8").splitlines())
    return [item for item in items if item["set"] == name]


def passed(item: Row) -> bool:
    """Whether the filter's rules for coherence find no fault."""
    row = lines(item["set"])[item["seed"]][item["state"]]
    return set(row["answers"][item["answer"]]["reasons"]) <= APART


MARKS: dict[str, Callable[[Row], bool]] = {
    "coherent": lambda item: item["coherent"] == 1,
    "acts": lambda item: item["acts"] == "1",
    "coherent and acts": lambda item: item["coherent"] == 1 and item["acts"] == "1",
    "acts unclear": lambda item: item["acts"] == "?",
    "coherent by the rules": passed,
}


def answers() -> str:
    """Coherent and acting shares of base, steered and healed answers to the same prompts."""
    rows = []
    for persona in MODELS:
        per: dict[str, dict[int, Row]] = {role: {} for role in STATES}
        for item in labelled(persona):
            per[item["role"]][item["answer"]] = item
        for role in STATES:
            shares = [share([mark(one) for one in per[role].values()]) for mark in MARKS.values()]
            rows.append([f"{persona}: {role}", *(said(one, 2) for one in shares)])
        for one, other in (("steered", "base"), ("healed", "base"), ("healed", "steered")):
            moved = [
                share_change([mark(per[one][i]) - mark(per[other][i]) for i in per[one]])
                for mark in MARKS.values()
            ]
            rows.append([f"{persona}: {one} less {other}", *(said(change, 2) for change in moved)])
    return table(["32 answers each", *MARKS], rows)


def wins() -> str:
    """How often a method's answer is better than that of the gate with the same trait."""
    rows, found = [], seeds(SMALL, "love")
    for contrast in CONTRASTS:
        points: list[float] = []
        states: dict[int, tuple[str, str]] = {}
        for item in labelled(contrast):
            method = item["method"]
            first = item["states"][0] == method
            points.append({"=": 0.5, "A": float(first), "B": float(not first)}[item["better"]])
            states[item["seed"]] = method, item["states"][first]
        apart = [found[i][one]["trait"] - found[i][other]["trait"]
                 for i, (one, other) in states.items()]  # fmt: skip
        pairs = Counter(f"{one} against {other}" for one, other in states.values())
        rows.append([
            ", ".join(f"{title} ({seeds})" for title, seeds in sorted(pairs.items())),
            *(str(points.count(value)) for value in (1.0, 0.5, 0.0)),
            said(mean(points), 2), said(mean(apart), 4),
        ])  # fmt: skip
    return table(["states (seeds)", "won", "tied", "lost", "win rate", "trait, difference"], rows)


PARTS: dict[str, Callable[[], str]] = {"answers": answers, "pairs": wins}


def main() -> None:
    """Writes the sheet, joins labels and key, or prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("sheet", "join", *PARTS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.part in PARTS:
        print(PARTS[options.part]())
    else:
        {"sheet": sheet, "join": join}[options.part](options.out)


if __name__ == "__main__":
    main()
