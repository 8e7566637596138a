"""Split-half reliability of the trait, from the kept lines.

Units are scored by one half of what they are read with and by the other; r is the correlation of
the two scores over the units and 2r/(1 + r) the reliability of both halves together (Spearman
1910, Brown 1910, Br. J. Psychol. 3). Wordings are split in all ways, prompts in 100 drawn ones, and
the mean over splits is taken; intervals are over seeds. What is read per token is not in the lines,
so that the finest unit is an answer.
Usage: python lab/evidence/reliability.py trait
"""

import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from blind import MODELS, Row, lines
from frontier_tables import printed, said, table
from numpy.typing import NDArray

from steerheal.measure.stats import mean

SPLITS = 100
Floats = NDArray[np.float64]
Halves = Iterable[tuple[list[int], list[int]]]


def correlation(one: Floats, other: Floats) -> float:
    """Over units, leaving out those that a half does not read."""
    read = np.isfinite(one) & np.isfinite(other)
    return float(np.corrcoef(one[read], other[read])[0, 1])


def all_halves(size: int) -> Halves:
    """Every way to halve so many wordings, once."""
    for rest in itertools.combinations(range(1, size), size // 2 - 1):
        yield [0, *rest], [i for i in range(1, size) if i not in rest]


def drawn_halves(size: int) -> Halves:
    """Halves of so many prompts."""
    dice = np.random.default_rng(0)
    for _ in range(SPLITS):
        order = dice.permutation(size).tolist()
        yield order[: size // 2], order[size // 2 :]


def split_half(items: Floats, halves: Halves) -> float:
    """Reliability of the mean over items, of units in rows [U, I]."""
    found = [
        correlation(np.nanmean(items[:, one], axis=1), np.nanmean(items[:, other], axis=1))
        for one, other in halves
    ]
    return float(np.mean([2 * r / (1 + r) for r in found]))


def singly(items: Floats) -> float:
    """Mean correlation of two columns."""
    pairs = itertools.combinations(range(items.shape[1]), 2)
    return float(np.mean([correlation(items[:, i], items[:, k]) for i, k in pairs]))


def held_out(row: Row) -> Floats:
    """Trait of every answer under every held-out wording, [A, W]."""
    return np.array(row["trait_held_out"], dtype=float)


def poles(row: Row) -> Floats:
    """Log-odds of every answer's own tokens under the built-in poles, [A]."""
    return np.array([one["logodds"] for one in row["answers"]], dtype=float)


def per_prompt(values: Floats, asked: int) -> Floats:
    """Mean over the draws of every prompt, [asked]."""
    return np.nanmean(values.reshape(-1, asked), axis=0)


def by_answer(seed: dict[str, Row]) -> dict[str, float]:
    """What one seed says where the base's answers are the units."""
    new, old = held_out(seed["base"]), poles(seed["base"])
    size = new.shape[1]
    return {
        "base's answers, r: one held-out wording with another": singly(new),
        "base's answers, r: built-in poles with a held-out wording": float(
            np.mean([correlation(old, one) for one in new.T])
        ),
        "base's answers: held-out wordings": split_half(new, all_halves(size)),
    }


def by_state(states: Sequence[Row], called: str) -> dict[str, float]:
    """What one seed says where its states are the units."""
    asked = len({one["prompt"] for one in states[0]["answers"]})
    words = np.stack([np.nanmean(held_out(row), axis=0) for row in states])
    new = np.stack([per_prompt(np.nanmean(held_out(row), axis=1), asked) for row in states])
    old = np.stack([per_prompt(poles(row), asked) for row in states])
    return {
        f"{called}: held-out wordings": split_half(words, all_halves(words.shape[1])),
        f"{called}: prompts": split_half(new, drawn_halves(asked)),
        f"{called}: prompts, built-in poles": split_half(old, drawn_halves(asked)),
    }


HEALS = ("none", "unfiltered", "anchor", "best", "masked", "common", "common-plain", "odd")
"""Arms of steered text, alike enough in trait that noise would show."""


def trait() -> str:
    """Reliability per unit and kind of half, today's trait beside the built-in poles' log-odds."""
    columns: dict[str, list[dict[str, float]]] = {}
    for persona in MODELS:
        columns[persona] = [
            by_answer(seed)
            | by_state(list(seed.values()), "all states")
            | by_state([seed[f"{arm} 1"] for arm in HEALS], "heals at gate 1")
            for seed in lines(persona)
        ]
    rows = [
        [title, *(over_seeds([one[title] for one in found]) for found in columns.values())]
        for title in columns["love"][0]
    ]
    return table(["units: halves of", *columns], rows)


def over_seeds(values: Sequence[float]) -> str:
    """Mean with its interval; two seeds are shown as they are."""
    if len(values) > 2:
        return said(mean(values), 2)
    return " and ".join(f"{value:.2f}".replace("-", "−") for value in values)


PARTS: dict[str, Callable[[], str]] = {"trait": trait}


def main() -> None:
    """Prints a table."""
    printed(PARTS, __doc__)


if __name__ == "__main__":
    main()
