"""How good the filter is, on completions of the embedded model that were labelled by reading.

Prints precision and recall of every rule and of all together, at several shares of the base's own
text that may be dropped, and the same for the rows on whose coherence the reader did not hesitate.
The limits are set on base text sampled at temperature 1, and so are the rows of the tables; the
rows at 0.3 only help to fit the weights and to count loops.
With --fit it also fits the combined rule's weights again (logistic regression, cross-validated) and
writes them into the package. Needs no model: the labelled file holds what the base says of every
token.

    python benchmarks/filter.py [--fit]
"""

import argparse
import gzip
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steerheal.config import FilterSettings
from steerheal.filter import rules as rules
from steerheal.filter.features import Scored, features_of
from steerheal.personas import find
from steerheal.records import Calibration, Completion

ROOT = Path(__file__).parents[1]
LABELLED = ROOT / "tests" / "data" / "labelled.jsonl.gz"
WEIGHTS = ROOT / "src" / "steerheal" / "data" / "coherence.json"
FEATURES = (
    "nll",
    "entropy",
    "stretch",
    "flat",
    "word_repetition",
    "char_repetition",
    "compression",
    "tokens_per_word",
    "drift",
    "words",
)
INCOHERENT = (
    "incoherent",
    "collapses at the end",
    "loses the thread",
    "compresses",
    "few distinct words",
    "foreign characters",
    "KL spike",
    "loops (tokens)",
    "loops (words)",
    "loops (characters)",
)
"""Rules that speak of coherence."""
FOLDS, PENALTY = 8, 1.0


class Labelled(NamedTuple):
    """A labelled completion, and what the base says of it."""

    completion: Completion
    scored: Scored
    label: dict[str, Any]


def read(persona: str, *, calibration: bool) -> list[Labelled]:
    """The labelled completions of a persona, or the base's unlabelled ones for calibration."""
    with gzip.open(LABELLED, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [
        Labelled(
            Completion.model_validate(row["completion"]),
            Scored(row["logprobs"], row["entropies"], row["kls"], row["logodds"]),
            row,
        )
        for row in rows
        if row["persona"] == persona and row.get("calibration", False) == calibration
    ]


def calibration_of(persona: str, settings: FilterSettings) -> Calibration:
    """The limits on the base's own text."""
    rows = read(persona, calibration=True)
    return rules.calibrated(
        [row.completion for row in rows], [row.scored for row in rows], find(persona), settings
    )


def judged(settings: FilterSettings) -> list[tuple[Labelled, tuple[str, ...]]]:
    """Every labelled completion with the reasons that speak against it."""
    found = []
    for persona in ("love", "authority"):
        rows, limits = read(persona, calibration=False), calibration_of(persona, settings)
        verdicts = rules.judge(
            [row.completion for row in rows],
            [row.scored for row in rows],
            find(persona),
            calibration=limits,
            settings=settings,
        )
        found += [(row, verdict.reasons) for row, verdict in zip(rows, verdicts, strict=True)]
    return found


def rates(hit: Sequence[bool], bad: Sequence[bool]) -> tuple[float, float]:
    """Precision and recall."""
    both = sum(a and b for a, b in zip(hit, bad, strict=True))
    return both / max(1, sum(hit)), both / max(1, sum(bad))


def loops_at_its_end(completion: Completion) -> bool:
    """Whether the text's last dozen characters stand in it more than three times."""
    return completion.text.count(completion.text[-12:]) > 3


def show(settings: FilterSettings) -> None:
    """A table per share that may be dropped."""
    everything = judged(settings)
    rows = [(row, reasons) for row, reasons in everything if row.label["temperature"] == 1]
    bad = [not row.label["coherent"] for row, _ in rows]
    sure = [not row.label["borderline"] for row, _ in rows]
    print(f"\nfalse_drop {settings.false_drop}, rule_drop {settings.rule_drop}")
    for name in INCOHERENT:
        precision, recall = rates([name in reasons for _, reasons in rows], bad)
        count = sum(name in reasons for _, reasons in rows)
        print(f"  {name:22} drops {count:3d}   precision {precision:.2f}   recall {recall:.2f}")
    hit = [any(name in INCOHERENT for name in reasons) for _, reasons in rows]
    for title, keep in (("together", [True] * len(rows)), ("together, no hesitation", sure)):
        part = [i for i, yes in enumerate(keep) if yes]
        precision, recall = rates([hit[i] for i in part], [bad[i] for i in part])
        print(f"  {title:22} of {len(part):3d}     precision {precision:.2f}   recall {recall:.2f}")
    narrated = [row.label["mode"] == "narrates" for row, _ in rows]
    precision, recall = rates(["narrates" in reasons for _, reasons in rows], narrated)
    print(f"  narrates ({sum(narrated)} labelled)           "
          f"precision {precision:.2f}   recall {recall:.2f}")  # fmt: skip
    loops = [(row, reasons) for row, reasons in everything if loops_at_its_end(row.completion)]
    kept = sum(not reasons for _, reasons in loops)
    print(f"  of {len(loops)} rows of any temperature that loop at their end, kept: {kept}")
    limits = [calibration_of(name, settings) for name in ("love", "authority")]
    inside, fresh = (
        sum(getattr(item, name)["together"] for item in limits) / 2 for name in ("dropped", "fresh")
    )
    print(f"  the base's own text dropped, all rules: {inside:.2f}, fresh text {fresh:.2f}")


def spreads() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Features in spreads from the base's median; 1 for incoherent; whether the reader was sure."""
    table, bad, sure = [], [], []
    for persona in ("love", "authority"):
        limits = calibration_of(persona, FilterSettings())
        for row in read(persona, calibration=False):
            features = asdict(
                features_of(row.completion, row.scored, find(persona), limits.classes)
            )
            table.append(
                [
                    np.clip(
                        (features[name] - limits.medians[name]) / max(limits.spreads[name], 1e-3),
                        rules.FAR_DOWN,
                        rules.FAR_UP,
                    )
                    for name in FEATURES
                ]
            )
            bad.append(not row.label["coherent"])
            sure.append(not row.label["borderline"])
    return np.array(table), np.array(bad, dtype=np.float64), np.array(sure)


def fitted(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Weights and intercept of a ridge logistic regression, by gradient descent."""
    weights, start = np.zeros(x.shape[1]), 0.0
    for _ in range(4000):
        wrong = 1 / (1 + np.exp(-np.clip(x @ weights + start, -30, 30))) - y
        weights -= 0.2 * (x.T @ wrong + PENALTY * weights) / len(y)
        start -= 0.2 * wrong.mean()
    return weights, start


def fit() -> None:
    """Fits, cross-validates, and writes the weights."""
    x, y, sure = spreads()
    for title, keep in (("all", np.ones(len(y), dtype=bool)), ("no hesitation", sure)):
        found = []
        for seed in range(5):
            folds = np.random.default_rng(seed).permutation(np.arange(len(y)) % FOLDS)
            scores = np.zeros(len(y))
            for fold in range(FOLDS):
                weights, start = fitted(x[folds != fold], y[folds != fold])
                scores[folds == fold] = x[folds == fold] @ weights + start
            limit = np.quantile(scores[keep & (y == 1)], 0.05)
            hit = scores[keep] >= limit
            found.append(y[keep][hit].mean())
        print(f"cross-validated, {title}: at recall 0.95 the precision is {np.mean(found):.2f} "
              f"({y[keep].mean():.2f} of the rows are incoherent)")  # fmt: skip
    weights, _ = fitted(x, y)
    WEIGHTS.write_text(
        json.dumps(
            {
                "source": f"{len(y)} completions of SmolLM2-135M-Instruct labelled by reading "
                "(tests/data/labelled.jsonl.gz), benchmarks/filter.py --fit",
                "unit": "spreads of the base's own text from its median",
                "weights": dict(zip(FEATURES, weights.round(3).tolist(), strict=True)),
            },
            indent=2,
        )
        + "\n",
        encoding="utf-8",
    )


def unseen(settings: FilterSettings) -> list[tuple[Labelled, tuple[str, ...]]]:
    """Every labelled completion, judged by weights that were fitted without it."""
    x, y, _ = spreads()
    folds = np.random.default_rng(0).permutation(np.arange(len(y)) % FOLDS)
    found: list[tuple[Labelled, tuple[str, ...]]] = [None] * len(y)  # type: ignore[list-item]
    own = rules.weights
    for fold in range(FOLDS):
        weights, _ = fitted(x[folds != fold], y[folds != fold])
        table = dict(zip(FEATURES, weights.tolist(), strict=True))
        rules.weights = lambda table=table: table
        for i, row in enumerate(judged(settings)):
            if folds[i] == fold:
                found[i] = row
    rules.weights = own
    return found


def show_unseen(settings: FilterSettings) -> None:
    """Precision and recall on completions that the weights do not know."""
    rows = [row for row in unseen(settings) if row[0].label["temperature"] == 1]
    bad = [not row.label["coherent"] for row, _ in rows]
    hit = [any(name in INCOHERENT for name in reasons) for _, reasons in rows]
    sure = [not row.label["borderline"] for row, _ in rows]
    for title, keep in (("all", [True] * len(rows)), ("no hesitation", sure)):
        part = [i for i, yes in enumerate(keep) if yes]
        precision, recall = rates([hit[i] for i in part], [bad[i] for i in part])
        print(f"  cross-validated, {title:14} of {len(part):3d}   "
              f"precision {precision:.2f}   recall {recall:.2f}")  # fmt: skip


def main() -> None:
    """Fits when asked, then prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fit", action="store_true", help="fit the combined rule's weights again")
    if parser.parse_args().fit:
        fit()
        rules.weights.cache_clear()
    for share in (0.05, 0.1, 0.2, 0.4, 0.5):
        show(FilterSettings(false_drop=share))
        show_unseen(FilterSettings(false_drop=share))


if __name__ == "__main__":
    main()
