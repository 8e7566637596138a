"""Judges the answers of frontier.py's lines, and labelled completions that show what it is worth.

Usage: python lab/evidence/judged.py --judge FILE --out DIR
"""

import argparse
import gzip
import json
import time
from pathlib import Path

import torch

from steerheal.config import ModelSettings
from steerheal.measure.judge import Exchange, judge
from steerheal.models.load import load
from steerheal.models.model import ChatModel

LABELLED = Path(__file__).parents[2] / "tests" / "data" / "labelled.jsonl.gz"


def judged(chat: ChatModel, exchanges: list[Exchange]) -> list[list[float]]:
    """P(yes) per wording and what the prompt adds, per exchange."""
    rows = judge(chat, exchanges)
    return [[*(round(p, 5) for p in row.yes), round(row.fit, 5)] for row in rows]


def main() -> None:
    """Does what no earlier call has judged."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--judge", required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--most", type=int, help="labelled completions, for a trial")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    chat = load(ModelSettings(name=options.judge, dtype=options.dtype, device=options.device))
    tag = f"judged-{Path(options.judge).stem}"
    labels = options.out / f"labels.{tag}.json"
    if not labels.exists():
        with gzip.open(LABELLED, "rt", encoding="utf-8") as stream:
            rows = [json.loads(line) for line in stream][: options.most]
        said = [Exchange(r["completion"]["prompt"], r["completion"]["text"]) for r in rows]
        labels.write_text(json.dumps(judged(chat, said)))
    files = [file for file in options.out.glob("*-s[0-9]*.jsonl") if ".judged-" not in file.name]
    for file in sorted(files):
        done_file = file.with_suffix(f".{tag}.jsonl")
        done = set()
        if done_file.exists():
            done = {json.loads(line)["state"] for line in done_file.read_text().splitlines()}
        for line in file.read_text().splitlines():
            row = json.loads(line)
            if row["state"] in done or "answers" not in row:
                continue
            said = [Exchange(a["prompt"], a["text"]) for a in row["answers"]]
            with done_file.open("a") as stream:
                found = {"state": row["state"], "judged": judged(chat, said)}
                stream.write(json.dumps(found) + "\n")
        print(f"{time.strftime('%H:%M:%S')} {file.name} judged", flush=True)


if __name__ == "__main__":
    main()
