"""The tables of docs/why-gates.md and docs/evidence.md that the kept lines give.

Usage: python lab/evidence/frontier_tables.py PART [--figure FILE]   (of one-curve)
"""

import argparse
import gzip
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import kept
import matplotlib.pyplot as plt
import numpy as np

from steerheal.filter.coherent import APART
from steerheal.measure.stats import holm, jackknife, log_of_means, mean, p_value
from steerheal.records import FOUNDATIONS, Reading

RECORDS = Path(__file__).parent / "records" / "frontier"
LABELLED = Path(__file__).parents[2] / "tests" / "data" / "labelled.jsonl.gz"
JUDGES = ("0.5B", "1.5B")
SMALL, LARGE = "SmolLM2-135M", "Qwen2.5-Coder-1.5B"
METHODS = ("common", "best", "anchor")
ALPHA = 0.05
State = dict[str, Any]
Seed = dict[str, State]


# ── the lines ────────────────────────────────────────────────────────────────────────────────────


@cache
def seeds(model: str, persona: str) -> list[Seed]:
    """The states of every seed, as numbers."""
    found = []
    for file in sorted(RECORDS.glob(f"{model}*-{persona}-s[0-9].jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as stream:
            rows = [json.loads(line) for line in stream]
        found.append({row["state"]: numbers(row) for row in rows})
    return found


KEPT = (
    "arm", "gate", "dose", "shares", "outcome", "drawn", "kept", "tokens", "seconds",
)  # fmt: skip
"""What a line says of how it came about."""


def numbers(row: State) -> State:
    """A state's readings: means over answers, texts, tasks and vignettes."""
    found = {key: row[key] for key in KEPT if key in row}
    if "answers" in row:
        answers = row["answers"]
        found |= {
            "coherent": np.mean([set(one["reasons"]) <= APART for one in answers]),
            "trait": np.nanmean(row["trait_held_out"]),
            "kl": np.nanmean([one["kl"] for one in answers]),
            "implausible": np.nanmean([one["implausible"] for one in answers]),
            "nll": np.nanmean([one["nll"] for one in answers]),
            "spill": np.mean(row["spill"]),
            "tasks": np.mean(list(row["tasks"].values())),
            "plain": math.log(row["plain"]),
            "canary": np.mean(row["canary"]),
        }
        for judge in JUDGES:
            said = [one[f"judge {judge}"] for one in answers if f"judge {judge}" in one]
            if said:
                found[f"yes {judge}"] = np.mean([(one[0] + one[1]) / 2 for one in said])
                found[f"fit {judge}"] = np.nanmean([one[2] for one in said])
    for think in (0, 128):
        if rows := row.get(f"forced_{think}"):
            found |= forced(rows, f" {think}")
            found[f"vignettes {think}"] = np.array([[*row[2], row[3]] for row in rows])
    return found


def forced(rows: Sequence[Sequence[Any]], tag: str) -> State:
    """ln of every foundation's mean probability, answer mass and accuracy."""
    shares = np.array([row[2] for row in rows])
    logs = {
        f"{name}{tag}": math.log(p) for name, p in zip(FOUNDATIONS, shares.mean(0), strict=True)
    }
    judged = [row for row in rows if row[1] in FOUNDATIONS]
    right = [FOUNDATIONS[int(np.argmax(row[2]))] == row[1] for row in judged]
    return {**logs, f"mass{tag}": np.mean([row[3] for row in rows]), f"top-1{tag}": np.mean(right)}


# ── what is made of them ─────────────────────────────────────────────────────────────────────────


def column(found: Sequence[Seed], state: str, name: str) -> list[float]:
    """A reading of a state over the seeds that have it."""
    return [one[state][name] for one in found if name in one.get(state, {})]


def change(found: Sequence[Seed], state: str, name: str, against: str = "base") -> Reading:
    """Mean over seeds of a state's reading less another state's."""
    both = [one for one in found if name in one.get(state, {}) and name in one.get(against, {})]
    return mean([one[state][name] - one[against][name] for one in both])


def broken(seed: Seed) -> str:
    """The steered state at the dose that breaks this seed's text."""
    return f"steered {seed['breaking 1']['dose']:g}"


def with_broken(found: Sequence[Seed]) -> list[Seed]:
    """The seeds with that state under one name."""
    return [{**one, "steered": one[broken(one)]} for one in found]


def at_equal(seed: Seed, state: str, x: str, y: str, front: str = "none") -> float:
    """A state's y less that of the front at the state's x; NaN beyond the front's ends.

    The front is a straight line between neighbouring gates, the base among them.
    """
    points = sorted(
        (one[x], one[y]) for name, one in seed.items() if one.get("arm") == front or name == "base"
    )
    xs, ys = zip(*points, strict=True)
    here = seed[state][x]
    return seed[state][y] - float(np.interp(here, xs, ys)) if xs[0] <= here <= xs[-1] else math.nan


def chosen(seed: Seed, arm: str, x: str = "trait") -> str:
    """The arm at gate 1, or the largest gate whose trait the front reaches."""
    most = max(one[x] for one in seed.values() if one.get("arm") == "none")
    gates = sorted(
        (name for name, one in seed.items() if one.get("arm") == arm and one["gate"] <= 1),
        key=lambda name: -seed[name]["gate"],
    )
    return next((name for name in gates if seed[name][x] <= most), gates[-1])


def against_front(found: Sequence[Seed], arm: str, y: str, x: str = "trait") -> Reading:
    """The plan's contrast: an arm less the front at equal trait, mean over seeds."""
    return mean([at_equal(one, chosen(one, arm, x), x, y) for one in found])


# ── tables ───────────────────────────────────────────────────────────────────────────────────────


def said(reading: Reading, digits: int = 3) -> str:
    """A value with its interval."""
    if math.isnan(reading.value):
        return "–"
    if math.isnan(reading.low):
        return f"{reading.value:.{digits}f}"
    low, high = (f"{end:.{digits}f}".replace("-", "−") for end in (reading.low, reading.high))
    return f"{reading.value:.{digits}f} [{low}, {high}]".replace("-", "−")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def printed(parts: dict[str, Callable[[], str]], says: str | None) -> None:
    """The table that the command line names, of those that a script has."""
    parser = argparse.ArgumentParser(description=says)
    parser.add_argument("part", choices=tuple(parts))
    print(parts[parser.parse_args().part]())


def states(found: Sequence[Seed], names: Sequence[str], columns: dict[str, str]) -> str:
    """Means over seeds."""
    rows = []
    for name in names:
        values = [column(found, name, key) for key in columns.values()]
        shown = [f"{np.mean(one):.3f}".replace("-", "−") if one else "–" for one in values]
        rows.append([f"{name} ({len(values[0])})" if len(values[0]) < len(found) else name, *shown])
    return table(["state", *columns], rows)


def small_states() -> str:
    """Every state of the embedded model."""
    found = with_broken(seeds(SMALL, "love"))
    names = [
        "base", "prompt", *(f"steered {dose:g}" for dose in (0.5, 1, 1.5, 2, 2.5, 3, 4)), "steered",
        "random", *(f"none {gate:g}" for gate in (0.25, 0.5, 0.75, 1, 1.25)), "unfiltered 1",
        "unsteered 1", "prompted 1", "random-healed 1", "common 0.5", "common 1", "common 1.5",
        "best 0.5", "best 1", "anchor 0.5", "anchor 1", "anchor 1.5", "masked 1", "common-plain 1",
        "odd 1",
    ]  # fmt: skip
    return states(found, names, {
        "trait": "trait", "coherent": "coherent", "KL": "kl", "spill": "spill", "tasks": "tasks",
        "ln ppl prose": "plain", "implausible": "implausible", "judge fit": "fit 1.5B",
        "canary": "canary",
    })  # fmt: skip


def small_primary() -> str:
    """The plan's contrasts, at equal held-out trait."""
    found = seeds(SMALL, "love")
    reads = {
        "coherent": "coherent", "spill": "spill", "ln ppl prose": "plain", "tasks": "tasks",
        "implausible": "implausible", "KL": "kl",
    }  # fmt: skip
    primary = {arm: against_front(found, arm, "coherent") for arm in METHODS}
    adjusted = dict(zip(METHODS, holm([p_value(primary[arm]) for arm in METHODS]), strict=True))
    rows = [
        [arm, *(said(against_front(found, arm, name)) for name in reads.values()),
         _gates(found, arm), f"{adjusted[arm]:.4f}" if arm in adjusted else "–"]
        for arm in (*METHODS, "masked", "common-plain", "odd")
    ]  # fmt: skip
    return table(["method less front", *reads, "gate (seeds)", "p (coherent, Holm)"], rows)


def _gates(found: Sequence[Seed], arm: str) -> str:
    """At which gates the arm is held against the front, and at how many seeds."""
    gates = Counter(one[chosen(one, arm)]["gate"] for one in found)
    return ", ".join(f"{gate:g} ({seeds})" for gate, seeds in sorted(gates.items()))


def small_cost() -> str:
    """What a heal takes beside the plain one: steps are as many in all, workers shared a GPU."""
    rows = []
    for arm, pools in {
        "none": ("steered",), "anchor": ("steered",), "best": ("steered",),
        "masked": ("masked",), "common": ("masked", "masked unsteered"),
        "common-plain": ("steered", "unsteered"), "odd": ("steered", "opposite"),
    }.items():  # fmt: skip
        heals = HEALS_OF.get(arm, (arm,))
        parts = [
            [_mean_of(kind, name, key) for kind, name, key in wanted]
            for wanted in (
                [("pool", pool, "drawn") for pool in pools],
                [("pool", pool, "kept") for pool in pools],
                [("heal", heal, "tokens") for heal in heals],
                [("heal", heal, "seconds") for heal in heals],
            )
        ]
        rows.append([arm, *(f"{sum(part):.0f}" for part in parts)])
    heads = ["heal", "texts drawn", "kept", "tokens trained on", "seconds of training"]
    return table(heads, rows)


HEALS_OF = {
    "common": ("masked", "masked-unsteered"),
    "common-plain": ("none", "unsteered"),
    "odd": ("none", "opposite"),
}
"""The adapters of a method that takes two."""


def _mean_of(kind: str, name: str, key: str) -> float:
    return float(np.mean([one[f"{kind} {name}"][key] for one in seeds(SMALL, "love")]))


def one_curve(figure: Path | None = None) -> str:
    """The healed arms of the older records beside trait = a·KL^b, fitted to all of them."""
    arms: dict[str, list[tuple[float, float]]] = {}
    for run in kept.read("love"):
        state = run.rounds[0].healed
        if state is not None and run.arm != "nll-unsteered":
            gain = np.mean(state.logodds) - np.mean(run.base.logodds)
            arms.setdefault(run.arm, []).append((float(np.mean(state.kl)), float(gain)))
    found = np.array([np.mean(values, axis=0) for values in arms.values()])
    power, ln_a = np.polyfit(np.log(found[:, 0]), np.log(found[:, 1]), 1)
    curve = math.exp(ln_a) * found[:, 0] ** power
    if figure is not None:
        _drawn(figure, dict(zip(arms, found, strict=True)), lambda kl: math.exp(ln_a) * kl**power)
    rest = found[:, 1] - curve
    share = 1 - float((rest**2).sum() / ((found[:, 1] - found[:, 1].mean()) ** 2).sum())
    rows = [
        [arm, f"{kl:.3f}", f"{gain:.3f}", f"{at:.3f}", f"{left:+.3f}".replace("-", "−")]
        for arm, (kl, gain), at, left in zip(arms, found, curve, rest, strict=True)
    ]
    size = math.sqrt(float((rest**2).mean()))
    rows.append([
        f"all: trait = {math.exp(ln_a):.3f}·KL^{power:.3f}", "", "",
        f"R² {share:.3f}", f"root mean square {size:.3f}",
    ])  # fmt: skip
    return table(["arm", "KL", "trait", "curve", "trait less curve"], rows)


def _drawn(figure: Path, arms: dict[str, Any], curve: Callable[[Any], Any]) -> None:
    """The arms by what is done to them, and the curve that was fitted to all."""
    kinds = {
        "no barrier": lambda arm: arm == "nll",
        "lower gate": lambda arm: "gate" in arm,
        "barrier": lambda arm: "kl_" in arm,
        "weight decay or spectral penalty": lambda arm: arm.startswith(("wd", "spectral")),
        "fewer steps, less dose, distillation": lambda _: True,
    }
    groups: dict[str, list[Any]] = {kind: [] for kind in kinds}
    for arm, point in arms.items():
        groups[next(kind for kind, holds in kinds.items() if holds(arm))].append(point)
    drawing, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    steps = np.linspace(0.02, 0.46, 100)
    axes.plot(steps, curve(steps), color="0.5", lw=1, label="fitted to all: trait = a·KL^b")
    for (kind, points), mark in zip(groups.items(), "*os^D", strict=True):
        axes.scatter(*np.transpose(points), marker=mark, s=60 if mark == "*" else 28, label=kind)
    axes.set(xlabel="KL to the base, nats per token", ylabel="trait gained, nats per token")
    axes.legend(frameon=False, fontsize=8)
    drawing.savefig(figure, dpi=150)


def small_heal() -> str:
    """Break and heal: what steering changes, what it breaks, and what the heal gives back."""
    found = with_broken(seeds(SMALL, "love"))
    return _heal(found, {
        "trait": "trait", "coherent": "coherent", "implausible": "implausible", "spill": "spill",
        "tasks": "tasks", "ln ppl prose": "plain", "KL": "kl", "judge fit": "fit 1.5B",
        "P(yes)": "yes 1.5B",
    })  # fmt: skip


def large_heal() -> str:
    """The same on the larger model: intervals are over vignettes, seed by seed."""
    rows = []
    for number, seed in enumerate(with_broken(seeds(LARGE, "authority"))):
        for title, (one, other) in PAIRS.items():
            rows.append([
                f"seed {number}: {title}",
                *(said(by_vignette(seed, one, other, *which), 2) for which in FORCED.values()),
                *(f"{seed[one][name] - seed[other][name]:+.3f}".replace("-", "−")
                  for name in ("coherent", "spill", "tasks")),
            ])  # fmt: skip
    return table(["", *FORCED, "coherent", "spill", "tasks"], rows)


FORCED = {
    "ln authority, T = 0": (0, "authority"),
    "ln care, T = 0": (0, "care"),
    "answer mass, T = 0": (0, ""),
    "ln authority, T = 128": (128, "authority"),
    "answer mass, T = 128": (128, ""),
}
"""Tokens of thinking, and the foundation; the answer mass without one."""


def by_vignette(seed: Seed, one: str, other: str, think: int, foundation: str) -> Reading:
    """How two states differ on the same vignettes."""
    key = f"vignettes {think}"
    if key not in seed[one] or key not in seed[other]:
        return Reading.unknown("not read")
    place = FOUNDATIONS.index(foundation) if foundation else -1
    both = np.stack([seed[one][key][:, place], seed[other][key][:, place]], axis=1)
    return jackknife(both, log_of_means) if foundation else mean(both[:, 0] - both[:, 1])


PAIRS = {
    "steered less base": ("steered", "base"),
    "healed less base": ("none 1", "base"),
    "unsteered control less base": ("unsteered 1", "base"),
    "healed less control": ("none 1", "unsteered 1"),
    "healed less steered": ("none 1", "steered"),
    "anchored less base": ("anchor 1", "base"),
    "anchored less steered": ("anchor 1", "steered"),
    "random at equal KL less base": ("random", "base"),
    "system prompt less base": ("prompt", "base"),
}
"""What is held against what."""


def _heal(found: Sequence[Seed], columns: dict[str, str]) -> str:
    rows = [
        [title, *(said(change(found, one, name, other)) for name in columns.values())]
        for title, (one, other) in PAIRS.items()
    ]
    return table(["", *columns], rows)


def curves() -> str:
    """Foundations and answer mass against dose, by forced choice without thinking."""
    rows = []
    for persona in ("care", "care-reversed", "tradition", "tradition-reversed",
                    "authority-reversed"):  # fmt: skip
        (one,) = seeds(LARGE, persona)
        for dose in (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0):
            here, zero = one[f"curve {dose:g}"], one["curve 0"]
            moved = [here[f"{name} 0"] - zero[f"{name} 0"] for name in FOUNDATIONS]
            rows.append([
                f"{persona} {dose:g}", *(f"{x:+.2f}".replace("-", "−") for x in moved),
                f"{here['mass 0']:.3f}", f"{here['top-1 0']:.2f}",
            ])  # fmt: skip
    return table(["persona, dose", *FOUNDATIONS, "answer mass", "top-1"], rows)


def large_states() -> str:
    """Every state of the larger model."""
    found = with_broken(seeds(LARGE, "authority"))
    names = [
        "base", "prompt", *(f"steered {dose:g}" for dose in (0.5, 1, 1.5, 2, 2.5, 3, 4)), "random",
        "none 0.5", "none 1", "none 1.25", "unfiltered 1", "unsteered 1", "prompted 1",
        "random-healed 1", "common 1", "best 1", "anchor 1", "masked 1", "masked-unsteered 1",
        "common-plain 1", "odd 1", "none round 2 steered", "none round 2", "unfiltered round 2",
    ]  # fmt: skip
    return states(found, names, {
        "authority": "authority 0", "care": "care 0", "mass": "mass 0", "top-1": "top-1 0",
        "authority, 128": "authority 128", "mass, 128": "mass 128", "coherent": "coherent",
        "KL": "kl", "spill": "spill", "tasks": "tasks", "judge fit": "fit 1.5B",
    })  # fmt: skip


def judges() -> str:
    """How well each judge's numbers tell coherent completions, within persona, heat and dose."""
    with gzip.open(LABELLED, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    read: dict[str, Callable[[Sequence[float]], float]] = {
        "P(yes), wording 1": lambda one: one[0],
        "P(yes), wording 2": lambda one: one[1],
        "P(yes), mean": lambda one: (one[0] + one[1]) / 2,
        "fit": lambda one: one[2] if one[2] == one[2] else -math.inf,
    }
    out = []
    for judge in JUDGES:
        said_of = json.loads((RECORDS / f"labels-{judge}.json").read_text())
        for title, number in read.items():
            cells: dict[tuple[Any, ...], list[tuple[float, bool]]] = {}
            for row, one in zip(rows, said_of, strict=True):
                if row.get("coherent") is not None:
                    key = (row["persona"], row["temperature"], row["completion"]["dose"])
                    cells.setdefault(key, []).append((number(one), row["coherent"]))
            pooled = _auc([pair for cell in cells.values() for pair in cell])
            inside = [_auc(cell) for cell in cells.values()]
            weight = sum(size for _, size in inside)
            within = sum(value * size for value, size in inside if size) / weight
            out.append([judge, title, f"{pooled[0]:.2f}", f"{within:.2f}"])
    return table(["judge", "number", "AUC", "AUC within dose"], out)


def _auc(pairs: Sequence[tuple[float, bool]]) -> tuple[float, int]:
    """The area, and how many pairs of a coherent and an incoherent completion it is over."""
    up = np.array([x for x, good in pairs if good])
    down = np.array([x for x, good in pairs if not good])
    if not len(up) or not len(down):
        return 0.0, 0
    wins = (up[:, None] > down).mean() + 0.5 * (up[:, None] == down).mean()
    return float(wins), len(up) * len(down)


PARTS: dict[str, Callable[[], str]] = {
    "judges": judges,
    "heal": small_heal,
    "primary": small_primary,
    "cost": small_cost,
    "one-curve": one_curve,
    "states": small_states,
    "heal-1.5b": large_heal,
    "states-1.5b": large_states,
    "curves-1.5b": curves,
}


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=tuple(PARTS))
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    print(one_curve(options.figure) if options.figure else PARTS[options.part]())


if __name__ == "__main__":
    main()
