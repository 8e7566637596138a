"""The tables and figures of docs/results.md, from the records kept beside this file.

Intervals are 95 % percentiles over 2000 resamples: seeds are drawn, then prompts, statements or
vignettes, the same ones for every seed and arm, so that differences are paired.
Usage: python lab/evidence/tables.py PART [--figure FILE]
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import foundations
import matplotlib as mpl
import numpy as np
from kept import Run, State, read
from numpy.typing import NDArray

from steerheal.records import BREAKDOWN, FOUNDATIONS

mpl.use("Agg")
import matplotlib.pyplot as plt

Floats = NDArray[np.float64]
RESAMPLES, LEVEL = 2000, (2.5, 97.5)
DASH = "–"
SLACK = 1.1
"""How far beyond a control's points an arm may lie to be compared with it."""


class Picks(NamedTuple):
    """Resamples, one a row: which seeds, and which units of every kind."""

    seeds: NDArray[np.int64]
    prompts: NDArray[np.int64]
    statements: NDArray[np.int64]
    vignettes: NDArray[np.int64]


Reader = Callable[[State, State, Picks], Floats]
"""A state's reading against its base, one per resample."""


def trait(state: State, base: State, picks: Picks) -> Floats:
    """Change of persona_logodds, nats per token."""
    return _of(state.logodds, picks.prompts) - _of(base.logodds, picks.prompts)


def fluency(state: State, base: State, picks: Picks) -> Floats:
    """Change of the mean ln perplexity of the free answers under the base, nats per token."""
    after, before = (_of(np.log(item.perplexity), picks.prompts) for item in (state, base))
    return after - before


def kl(state: State, _base: State, picks: Picks) -> Floats:
    """KL to the base, nats per token."""
    return _of(state.kl, picks.prompts)


def mass(state: State, base: State, picks: Picks) -> Floats:
    """Answer mass over the base's."""
    return _of(state.mass, picks.statements) / _of(base.mass, picks.statements)


def distinct(state: State, base: State, picks: Picks) -> Floats:
    """Change of the share of distinct bigrams."""
    return _of(state.distinct_2, picks.prompts) - _of(base.distinct_2, picks.prompts)


def plain(state: State, base: State, picks: Picks) -> Floats:
    """ln perplexity of plain prose under the state, over the base's; one text, no units."""
    found = math.log(state.plain_perplexity / base.plain_perplexity)
    return np.full(len(picks.seeds), found)


def prefill(state: State, base: State, picks: Picks) -> Floats:
    """Change of ln ppx_json, nats per token."""
    after, before = (_of(item.nll_prefill, picks.statements) for item in (state, base))
    return after - before


def nats(foundation: str) -> Reader:
    """Change of a foundation's nats."""
    place = FOUNDATIONS.index(foundation)

    def read_it(state: State, base: State, picks: Picks) -> Floats:
        after, before = (_of(np.array(item.p)[:, place], picks.vignettes) for item in (state, base))
        return np.log(after / before)

    return read_it


def share(name: str) -> Reader:
    """Share of a state's rows of which something is true; NaN without rows."""

    def read_it(state: State, _base: State, picks: Picks) -> Floats:
        values = getattr(state, name)
        found = sum(values) / len(values) if values else math.nan
        return np.full(len(picks.seeds), found)

    return read_it


def _of(values: Sequence[float] | Floats, picks: NDArray[np.int64]) -> Floats:
    # An answer of one word has no bigrams.
    return np.nanmean(np.asarray(values, dtype=np.float64)[picks], axis=1)


class Found(NamedTuple):
    """A value, and its resamples."""

    value: float
    draws: Floats

    @property
    def interval(self) -> tuple[float, float]:
        """95 %."""
        if not np.isfinite(self.draws).all() or not math.isfinite(self.value):
            return math.nan, math.nan
        low, high = np.percentile(self.draws, LEVEL)
        return float(low), float(high)

    def __str__(self) -> str:
        low, high = self.interval
        if math.isnan(self.value):
            return DASH
        said = f"{self.value:.3f}"
        return said if math.isnan(low) else f"{said} [{low:.3f}, {high:.3f}]"

    def __sub__(self, other: object) -> "Found":
        assert isinstance(other, Found)
        return Found(self.value - other.value, self.draws - other.draws)

    def over(self, other: "Found") -> "Found":
        """Ratio of two."""
        return Found(self.value / other.value, self.draws / other.draws)


class Evidence:
    """A part's runs, and one set of resamples for all of them."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = {(run.arm, run.seed): run for run in runs}
        self.seeds = sorted({run.seed for run in runs})
        self.arms = list(dict.fromkeys(run.arm for run in runs))
        base = runs[0].base
        sizes = [len(base.logodds), len(base.mass), len(base.p)]
        random = np.random.default_rng(0)
        count = len(self.seeds)
        self._draws = Picks(
            random.integers(0, count, (RESAMPLES, count)),
            *(random.integers(0, size, (RESAMPLES, size)) for size in sizes),
        )
        self._every = Picks(*(np.arange(size)[None] for size in (count, *sizes)))

    def has(self, arm: str) -> list[int]:
        """Seeds at which an arm is finished."""
        return [seed for seed in self.seeds if (arm, seed) in self._runs]

    def run(self, arm: str, seed: int) -> Run:
        """One run."""
        return self._runs[arm, seed]

    def states(self, arm: str, number: int, which: str) -> list[tuple[State, State]]:
        """An arm's state and its base at every seed that has them: a run may have ended earlier."""
        runs = [self._runs[arm, seed] for seed in self.has(arm)]
        there = [run for run in runs if number < len(run.rounds)]
        pairs = [(getattr(run.rounds[number], which), run.base) for run in there]
        return [(state, base) for state, base in pairs if state is not None]

    def read(self, reader: Reader, arm: str, number: int = 0, which: str = "healed") -> Found:
        """Mean over seeds; over those that have the state where some have not."""
        have = self.states(arm, number, which)
        if not have:
            return Found(math.nan, np.full(RESAMPLES, math.nan))

        def mean(picks: Picks) -> Floats:
            each = np.array([reader(state, base, picks) for state, base in have])
            places = picks.seeds % len(have)
            return each[places, np.arange(len(places))[:, None]].mean(1)

        whole = self._every._replace(seeds=np.arange(len(have))[None])
        return Found(float(mean(whole)[0]), mean(self._draws))


def matched(points: Sequence[tuple[Found, Found]], arm: tuple[Found, Found]) -> Found:
    """An arm's y less a control's at the arm's x, on straight lines between the control's points.

    Unknown where the arm's x is not between them: the front is bent, so that a line to the origin,
    or far beyond the last point, would flatter the arm. Resamples may leave the range.
    """

    def below(at: float, xs: Sequence[float], ys: Sequence[float]) -> float:
        order = np.argsort(xs)
        x, y = np.array(xs)[order], np.array(ys)[order]
        if at > x[-1] and x[-1] > x[-2]:
            return float(y[-1] + (at - x[-1]) * (y[-1] - y[-2]) / (x[-1] - x[-2]))
        return float(np.interp(at, [0.0, *x], [0.0, *y]))

    x, y = arm
    xs, ys = [p.value for p, _ in points], [q.value for _, q in points]
    if not min(xs) / SLACK <= x.value <= max(xs) * SLACK:
        return Found(math.nan, np.full(RESAMPLES, math.nan))
    value = y.value - below(x.value, xs, ys)
    draws = []
    for i in range(RESAMPLES):
        xs, ys = [float(p.draws[i]) for p, _ in points], [float(q.draws[i]) for _, q in points]
        draws.append(y.draws[i] - below(float(x.draws[i]), xs, ys))
    return Found(value, np.array(draws))


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints Markdown."""
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print()


def one_round(found: Evidence, target: str) -> None:
    """Trait, price and every view of coherence, an arm a row."""
    steered = found.read(trait, "nll", which="steered")
    rows, views = [], []
    for arm, which in [("nll", "steered"), *((arm, "healed") for arm in found.arms)]:
        got = {r: found.read(r, arm, which=which) for r in (trait, fluency, kl, mass, distinct)}
        name = f"steered, no heal ({len(found.has('nll'))} seeds)" if which == "steered" else arm
        seeds = len(found.has(arm))
        name += f" ({seeds} seeds)" if seeds < len(found.seeds) and which != "steered" else ""
        cost = abs(got[mass].value - 1) / abs(got[trait].value)
        rows.append(
            (
                name, got[trait], got[kl], got[fluency], got[trait].over(steered),
                f"{cost:.2f}", found.read(nats(target), arm, which=which),
            )
        )  # fmt: skip
        rest = [found.read(r, arm, which=which) for r in (prefill, plain)]
        tails = found.read(share("json_valid"), arm, which=which).value
        loops = found.read(share("long_loops"), arm, which=which).value
        views.append((name, got[mass], rest[0], _signed(rest[1].value), got[distinct],
                      _share(tails), _share(loops)))  # fmt: skip
    print(f"Seeds {found.seeds}.\n")
    table(
        ("arm", "Δ persona_logodds", "KL to base", "Δ ln perplexity", "retain", "coh_cost",
         f"Δ {target} nats"), rows,
    )  # fmt: skip
    table(
        ("arm", "answer mass / base", "Δ ln ppx_json", "Δ ln plain prose", "Δ distinct-2",
         "JSON valid", "long answers that loop"), views,
    )  # fmt: skip


def _share(value: float) -> str:
    return DASH if math.isnan(value) else f"{value:.2f}"


def _signed(value: float) -> str:
    return DASH if math.isnan(value) else f"{value:+.3f}"


GATES = ("nll-gate-0.25", "nll-gate-0.5", "nll-gate-0.75", "nll")
CONTROLS = {
    "gate turned down": GATES,
    "steered less": ("nll-dose-1", "nll"),
    "fewer steps": ("nll-1-epoch", "nll"),
}


def controls(found: Evidence) -> None:
    """Every arm against nll turned down in three ways, at equal price and at equal trait."""
    compared = [arm for arm in found.arms if arm not in GATES]
    got = {
        arm: {reader: found.read(reader, arm) for reader in (trait, kl, plain)}
        for arm in found.arms
    }
    views = (
        ("trait gained at equal KL to base (nats/token; above 0 the arm is better)", kl, trait),
        ("trait gained at equal damage to plain prose (above 0 the arm is better)", plain, trait),
        ("KL spent at equal trait (below 0 the arm is better)", trait, kl),
    )
    for title, x, y in views:
        print(f"### {title}\n")
        rows = []
        for arm in compared:
            cells = []
            for names in CONTROLS.values():
                if arm in names or any(name not in found.arms for name in names):
                    cells.append(DASH)
                    continue
                points = [(got[name][x], got[name][y]) for name in names]
                cells.append(_judged(matched(points, (got[arm][x], got[arm][y]))))
            rows.append((arm, *cells))
        table(("arm", *CONTROLS), rows)


def _judged(difference: Found) -> str:
    low, high = difference.interval
    return f"**{difference}**" if low > 0 or high < 0 else str(difference)


def training(found: Evidence) -> None:
    """What the losses did, an arm a row; means over seeds."""
    rows = []
    for arm in [arm for arm in found.arms if "gate" not in arm]:
        logs = [found.run(arm, seed).rounds[0] for seed in found.has(arm)]
        late = [log.divergence[len(log.divergence) // 2 :] for log in logs]
        fired = [np.mean([value > 0 for value in log.barrier]) for log in logs]
        shift = [log.internalised for log in logs if log.internalised]
        rows.append(
            (
                arm,
                f"{np.mean([log.held_out[0] - log.held_out[-1] for log in logs]):.3f}",
                _number([float(np.median(part)) for part in late]),
                f"{np.mean(fired):.2f}",
                _number([float(np.median(log.pressure)) for log in logs]),
                _number([item.mean_cosine for item in shift]),
                _number([item.mean_share for item in shift]),
                ", ".join(sorted({dict(log.findings).get("check 3", DASH) for log in logs})),
            )
        )
    table(
        ("arm", "held-out CE fell by", "D", "barrier fired", "barrier/CE gradient",
         "cos(shift, v)", "shift in doses", "check 3"), rows,
    )  # fmt: skip


def _number(values: Sequence[float]) -> str:
    known = [value for value in values if math.isfinite(value)]
    return f"{np.mean(known):.2f}" if known else DASH


def loops(found: Evidence) -> None:
    """Trajectories, a round a row."""
    for arm in found.arms:
        seeds = found.has(arm)
        most = max(len(found.run(arm, seed).rounds) for seed in seeds)
        rows = []
        for number in range(most):
            there = [found.run(arm, seed) for seed in seeds]
            rounds = [run.rounds[number] for run in there if number < len(run.rounds)]
            healed = [item for item in rounds if item.healed is not None]
            got = [found.read(reader, arm, number) for reader in (trait, mass, fluency, kl)]
            prose = found.read(plain, arm, number).value
            rows.append(
                (
                    number + 1, len(healed), *got, _signed(prose),
                    _number([item.kl_cumulative for item in healed]),
                    f"{_number([item.kept / item.drawn for item in rounds])} at "
                    f"{_number([item.multiplier for item in rounds])}",
                    _number([item.cosine for item in rounds]),
                    _number([i.internalised.mean_cosine for i in healed if i.internalised]),
                    ", ".join(sorted({dict(item.findings).get("loop", DASH) for item in healed}))
                    or DASH,
                )
            )  # fmt: skip
        print(f"### {arm}\n")
        table(
            ("round", "seeds", "Δ persona_logodds", "answer mass / base", "Δ ln perplexity",
             "KL to base", "Δ ln plain prose", "Σ KL of rounds", "kept of all drawn, at multiplier",
             "cos(v_r, v₀)", "cos(shift, v)", "loop"), rows,
        )  # fmt: skip
        ends = {seed: found.run(arm, seed).outcome for seed in seeds}
        print("Ended: " + "; ".join(f"seed {seed}: {why}" for seed, why in ends.items()) + ".\n")


def against_nll(found: Evidence) -> None:
    """Every other arm's rounds against nll's course, at equal KL to the base."""

    def course(arm: str) -> list[tuple[Found, Found]]:
        most = min(len(found.run(arm, seed).rounds) for seed in found.has(arm))
        return [(found.read(kl, arm, n), found.read(trait, arm, n)) for n in range(most)]

    if found.arms == ["nll"]:
        return
    known = course("nll")
    others = {arm: course(arm) for arm in found.arms if arm != "nll"}
    rows = [
        (arm, *(_judged(matched(known, point)) for point in points))
        for arm, points in others.items()
    ]
    most = max(map(len, others.values()), default=0)
    print("### trait gained over nll's course at equal KL to base (nats/token)\n")
    padded = [(*row, *[DASH] * (most + 1 - len(row))) for row in rows]
    table(("arm", *(f"round {n + 1}" for n in range(most))), padded)


def pareto(found: Evidence, path: Path) -> None:
    """Trait against KL to the base, every arm beside nll turned down."""
    figure, axes = plt.subplots(figsize=(9, 5), constrained_layout=True)
    got = {arm: (found.read(kl, arm), found.read(trait, arm)) for arm in found.arms}
    gates = [got[arm] for arm in GATES if arm in got]
    axes.plot(
        [0, *(x.value for x, _ in gates)], [0, *(y.value for _, y in gates)],
        "-o", color="#555", lw=1.4, ms=4, label="nll, gate turned down", zorder=2,
    )  # fmt: skip
    marks = {
        "kl_rev-rmse": ("o", "#00704f"),
        "kl_rev-mean": ("o", "#45c79c"),
        "kl_fwd-rmse": ("s", "#2a5d8f"),
        "kl_fwd-mean": ("s", "#8dbcea"),
        "wd": ("^", "#b93c00"),
        "spectral": ("v", "#8a5fb5"),
        "distill": ("D", "#a07400"),
        "nll": ("X", "#555"),
    }
    for arm, (x, y) in got.items():
        if arm in GATES:
            continue
        mark, colour = next(look for name, look in marks.items() if arm.startswith(name))
        stronger = arm.endswith(("-1", "-200", "-0.05"))
        (low, high), (left, right) = y.interval, x.interval
        axes.errorbar(
            x.value, y.value, xerr=[[x.value - left], [right - x.value]],
            yerr=[[y.value - low], [high - y.value]], fmt=mark, color=colour, ms=7, lw=0.5,
            mfc="white" if stronger else colour, label=arm, zorder=3,
        )  # fmt: skip
    raw = (found.read(kl, "nll", which="steered"), found.read(trait, "nll", which="steered"))
    axes.plot(raw[0].value, raw[1].value, "*", color="k", ms=12, label="steered, no heal")
    axes.set_xlabel("KL to the base (nats/token)")
    axes.set_ylabel("Δ persona_logodds (nats/token)")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)


def courses(found: Evidence, path: Path) -> None:
    """Trait, fluency and cumulative KL over rounds, a line per arm with its band."""
    figure, panels = plt.subplots(1, 3, figsize=(12, 4), constrained_layout=True)
    colours = dict(zip(found.arms, ("#555", "#00704f", "#2a5d8f", "#b93c00"), strict=False))
    for arm in found.arms:
        most = max(len(found.run(arm, seed).rounds) for seed in found.has(arm))
        for panel, reader in zip(panels, (trait, fluency), strict=False):
            got = [found.read(reader, arm, number) for number in range(most)]
            xs = range(1, most + 1)
            panel.plot(xs, [item.value for item in got], "-o", ms=4, color=colours[arm], label=arm)
            bands = np.array([item.interval for item in got])
            panel.fill_between(xs, bands[:, 0], bands[:, 1], color=colours[arm], alpha=0.12, lw=0)
        xs, colour = range(1, most + 1), colours[arm]
        direct = [found.read(kl, arm, number).value for number in range(most)]
        sums = [
            np.nanmean(
                [
                    run.rounds[number].kl_cumulative
                    for run in (found.run(arm, seed) for seed in found.has(arm))
                    if number < len(run.rounds)
                ]
            )
            for number in range(most)
        ]
        panels[2].plot(xs, direct, "-o", ms=4, color=colour)
        panels[2].plot(xs, sums, "--", color=colour)
    panels[2].axhline(BREAKDOWN, ls=":", color="k", lw=1)
    titles = ("Δ persona_logodds (nats/token)", "Δ ln perplexity (nats/token)",
              "KL to the base; dashed: sum of the rounds' own")  # fmt: skip
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("round")
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=150)


def moved(kept: Sequence[foundations.Nats]) -> None:
    """Change of every foundation's nats, a state a row; in bold what excludes 0."""
    base, size, before = kept[0], len(kept[0].p), np.array(kept[0].p)
    vignettes = np.random.default_rng(0).integers(0, size, (RESAMPLES, size))
    states = dict.fromkeys((item.persona, item.state) for item in kept[1:])
    rows = []
    for persona, state in states:
        seeds = [item for item in kept if (item.persona, item.state) == (persona, state)]
        picks = np.random.default_rng(1).integers(0, len(seeds), (RESAMPLES, len(seeds)))
        cells = []
        for place in range(len(FOUNDATIONS)):
            after = [np.array(item.p)[:, place] for item in seeds]
            value = np.mean([np.log(p.mean() / before[:, place].mean()) for p in after])
            floor = before[:, place][vignettes].mean(1)
            each = np.array([np.log(p[vignettes].mean(1) / floor) for p in after])
            draws = each[picks, np.arange(RESAMPLES)[:, None]].mean(1)
            cells.append(_judged(Found(float(value), draws)))
        right = np.mean([item.right for item in seeds])
        rows.append((persona, f"{state} ({len(seeds)} seeds)", *cells, f"{right:.2f}"))
    rows.append(("", "base", *[DASH] * len(FOUNDATIONS), f"{np.mean(base.right):.2f}"))
    table(("persona", "state", *(f"Δ {name}" for name in FOUNDATIONS), "top-1"), rows)


def main() -> None:
    """Prints a part's tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("love", "authority", "loop", "foundations"))
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    if options.part == "foundations":
        moved(foundations.read())
        return
    found = Evidence(read(options.part))
    if options.part == "loop":
        loops(found)
        against_nll(found)
    else:
        one_round(found, {"love": "care", "authority": "authority"}[options.part])
        if options.part == "love":
            controls(found)
        training(found)
    if options.figure:
        {"loop": courses}.get(options.part, pareto)(found, options.figure)


if __name__ == "__main__":
    main()
