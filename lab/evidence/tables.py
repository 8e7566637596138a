"""The tables and figures of docs/results.md, from the records kept beside this file.

Intervals are the product's, at 95 %, of two variances: that of the mean over seeds, and that of the
mean over units (prompts, statements or vignettes), each to first order. A difference is taken
within a seed and on the same units. What a seed's units do to that seed alone is counted in both,
so that the intervals are rather too wide than too narrow.
Usage: python lab/evidence/tables.py PART [--figure FILE]
"""

import argparse
import math
from collections.abc import Callable, Sequence
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import foundations
import matplotlib as mpl
import numpy as np
from arms import STRENGTHS
from kept import Round, Run, State, read
from numpy.typing import NDArray

from steerheal.measure.stats import sum_of
from steerheal.records import BREAKDOWN, FOUNDATIONS

mpl.use("Agg")
import matplotlib.pyplot as plt

Floats = NDArray[np.float64]
Units = dict[str, Floats]
"""What every unit of a kind adds to a value, to first order; around 0."""
PROMPTS, STATEMENTS, VIGNETTES = "prompts", "statements", "vignettes"
DASH = "–"

Reader = Callable[[State, State], tuple[float, Units]]
"""A state's reading against its base."""


def trait(state: State, base: State) -> tuple[float, Units]:
    """Change of persona_logodds, nats per token."""
    return _mean(PROMPTS, np.array(state.logodds) - np.array(base.logodds))


def fluency(state: State, base: State) -> tuple[float, Units]:
    """Change of the mean ln perplexity of the free answers under the base, nats per token."""
    return _mean(PROMPTS, np.log(state.perplexity) - np.log(base.perplexity))


def kl(state: State, _base: State) -> tuple[float, Units]:
    """KL to the base, nats per token."""
    return _mean(PROMPTS, np.array(state.kl))


def distinct(state: State, base: State) -> tuple[float, Units]:
    """Change of the share of distinct bigrams, over the prompts where both answers have some."""
    return _mean(PROMPTS, np.array(state.distinct_2) - np.array(base.distinct_2))


def prefill(state: State, base: State) -> tuple[float, Units]:
    """Change of ln ppx_json, nats per token."""
    return _mean(STATEMENTS, np.array(state.nll_prefill) - np.array(base.nll_prefill))


def mass(state: State, base: State) -> tuple[float, Units]:
    """Answer mass over the base's."""
    after, before = np.array(state.mass), np.array(base.mass)
    ratio = float(after.mean() / before.mean())
    return ratio, {STATEMENTS: ratio * (after / after.mean() - before / before.mean())}


def plain(state: State, base: State) -> tuple[float, Units]:
    """ln perplexity of plain prose under the state, over the base's; one text, no units."""
    return math.log(state.plain_perplexity / base.plain_perplexity), {}


def nats(after: Floats, before: Floats) -> tuple[float, Units]:
    """Change of a foundation's nats, from its probability on every vignette."""
    found = math.log(after.mean() / before.mean())
    return found, {VIGNETTES: after / after.mean() - before / before.mean()}


def _mean(kind: str, values: Floats) -> tuple[float, Units]:
    # An answer of one word has no bigrams; a unit without a value adds nothing.
    found = float(np.nanmean(values)) if kind == PROMPTS else float(values.mean())
    return found, {kind: np.nan_to_num(values - found)}


class Found(NamedTuple):
    """A mean over seeds."""

    value: float
    seeds: dict[int, float]
    """What every seed gives; their mean is the value."""
    units: Units

    @classmethod
    def over_seeds(cls, reads: dict[int, tuple[float, Units]]) -> "Found":
        """From every seed's reading."""
        seeds = {seed: value for seed, (value, _) in reads.items()}
        every = [units for _, units in reads.values()]
        units = {kind: np.mean([item[kind] for item in every], axis=0) for kind in every[0]}
        return cls(float(np.mean([*seeds.values()])), seeds, units)

    @classmethod
    def unknown(cls) -> "Found":
        """Nothing to read."""
        return cls(math.nan, {}, {})

    @property
    def known(self) -> bool:
        """Whether there is a value."""
        return math.isfinite(self.value)

    @property
    def interval(self) -> tuple[float, float]:
        """95 %; unknown for one seed, or where nothing varies."""
        kinds = [np.array([*self.seeds.values()]), *self.units.values()]
        if len(self.seeds) < 2 or not any(np.ptp(values) for values in kinds):
            return math.nan, math.nan
        parts = [(float(v.var(ddof=1)) / len(v), len(v) - 1) for v in kinds]
        found = sum_of(self.value, parts, len(self.seeds))
        return found.low, found.high

    @property
    def moved(self) -> bool:
        """The interval excludes 0."""
        low, high = self.interval
        return low > 0 or high < 0

    def __str__(self) -> str:
        low, high = self.interval
        if not self.known:
            return DASH
        said = f"{self.value:.3f}"
        return said if math.isnan(low) else f"{said} [{low:.3f}, {high:.3f}]"

    def plus(self, other: "Found", times: float = 1.0) -> "Found":
        """A sum, within seeds and on the same units; unknown where the seeds differ."""
        if self.seeds.keys() != other.seeds.keys():
            return Found.unknown()
        seeds = {seed: value + times * other.seeds[seed] for seed, value in self.seeds.items()}
        units = dict(self.units)
        for kind, values in other.units.items():
            units[kind] = times * values + units.get(kind, 0.0)
        return Found(self.value + times * other.value, seeds, units)

    def __sub__(self, other: object) -> "Found":
        assert isinstance(other, Found)
        return self.plus(other, -1.0)

    def scaled(self, factor: float) -> "Found":
        """That many times it."""
        return self.plus(self, factor - 1.0)

    def over(self, other: "Found") -> "Found":
        """Ratio of two means, to first order.

        Unknown where the lower one's interval reaches half of it: first order does not hold there.
        """
        if not (other.known and other.interval[0] > other.value / 2):
            return Found.unknown()
        ratio = self.value / other.value
        rest = self.plus(other, -ratio).scaled(1 / other.value)
        return rest._replace(
            value=ratio, seeds={seed: ratio + value for seed, value in rest.seeds.items()}
        )


def pooled(found: Sequence[Found]) -> Found:
    """The mean of several."""
    return reduce(Found.plus, found).scaled(1 / len(found))


class Evidence:
    """A part's runs."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = {(run.arm, run.seed): run for run in runs}
        self.seeds = sorted({run.seed for run in runs})
        self.arms = list(dict.fromkeys(run.arm for run in runs))

    def has(self, arm: str) -> list[int]:
        """Seeds at which an arm is finished."""
        return [seed for seed in self.seeds if (arm, seed) in self._runs]

    def run(self, arm: str, seed: int) -> Run:
        """One run."""
        return self._runs[arm, seed]

    def states(self, arm: str, number: int, which: str) -> dict[int, tuple[State, State]]:
        """An arm's state and its base at every seed that has them: a run may have ended earlier."""
        runs = {seed: self._runs[arm, seed] for seed in self.has(arm)}
        there = {seed: run for seed, run in runs.items() if number < len(run.rounds)}
        pairs = {s: (getattr(run.rounds[number], which), run.base) for s, run in there.items()}
        return {seed: pair for seed, pair in pairs.items() if pair[0] is not None}

    def read(self, reader: Reader, arm: str, number: int = 0, which: str = "healed") -> Found:
        """Mean over seeds; over those that have the state where some have not."""
        have = self.states(arm, number, which)
        if not have:
            return Found.unknown()
        return Found.over_seeds({seed: reader(*pair) for seed, pair in have.items()})

    def share(self, name: str, arm: str, which: str) -> str:
        """Share of a state's rows of which something is true, over all seeds."""
        rows = [getattr(state, name) for state, _ in self.states(arm, 0, which).values()]
        return _number([sum(values) / len(values) for values in rows if values])

    def foundation(self, name: str, arm: str, which: str) -> str:
        """Change of a foundation's nats; too few vignettes for an interval."""
        place = FOUNDATIONS.index(name)
        pairs = self.states(arm, 0, which).values()
        both = [[np.array(item.p)[:, place] for item in pair] for pair in pairs]
        return f"{np.mean([nats(*pair)[0] for pair in both]):.3f}"


def matched(points: Sequence[tuple[Found, Found]], arm: tuple[Found, Found]) -> Found:
    """An arm's y less a control's at the arm's x, on straight lines between the control's points.

    A seed or resample gives what it adds to first order. Unknown where the arm's x is not between
    the control's: the front is bent, so that a line beyond would flatter the arm.
    """
    x, y = arm
    ordered = sorted((p for p in points if p[0].known), key=lambda point: point[0].value)
    for (left, low), (right, high) in pairwise(ordered):
        run, rise = right - left, high - low
        if run.value > 0 and left.value <= x.value <= right.value:
            share = (x.value - left.value) / run.value
            aside = x - left - run.scaled(share)
            return y - low - rise.scaled(share) - aside.scaled(rise.value / run.value)
    return Found.unknown()


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints Markdown."""
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print()


def one_round(found: Evidence, target: str) -> None:
    """Trait, price and every view of coherence, an arm a row."""
    raw = [(arm, "steered") for arm in STEERED if arm in found.arms]
    rows, views = [], []
    for arm, which in [*raw, *((arm, "healed") for arm in found.arms)]:
        got = {r: found.read(r, arm, which=which) for r in (trait, fluency, kl, mass)}
        own = arm if found.states(arm, 0, "steered") else "nll"
        retain = got[trait].over(found.read(trait, own, which="steered"))
        name = f"{STEERED[arm]}, no heal" if which == "steered" else arm
        seeds = len(found.has(arm))
        name += f" ({seeds} seeds)" if seeds < len(found.seeds) or not rows else ""
        cost = abs(got[mass].value - 1) / abs(got[trait].value)
        rows.append(
            (
                name, got[trait], got[kl], got[fluency],
                DASH if which == "steered" else retain, f"{cost:.2f}",
                found.foundation(target, arm, which),
            )
        )  # fmt: skip
        rest = [found.read(r, arm, which=which) for r in (prefill, plain, distinct)]
        shares = [found.share(item, arm, which) for item in ("json_valid", "long_loops")]
        views.append((name, got[mass], *rest, *shares))
    print(f"Seeds {found.seeds}.\n")
    table(
        ("arm", "Δ persona_logodds", "KL to base", "Δ ln perplexity", "retain", "coh_cost",
         f"Δ {target} nats"), rows,
    )  # fmt: skip
    table(
        ("arm", "answer mass / base", "Δ ln ppx_json", "Δ ln plain prose", "Δ distinct-2",
         "JSON valid", "long answers that loop"), views,
    )  # fmt: skip


GATES = ("nll-gate-0.25", "nll-gate-0.5", "nll-gate-0.75", "nll")
STEERED = {
    "nll-dose-0.5": "steered at 0.5",
    "nll-dose-1": "steered at 1",
    "nll": "steered",
}
"""Arms whose steered states differ; the others share nll's."""
CONTROLS = {
    "gate turned down": [(arm, "healed") for arm in GATES],
    "trained on less steered text": [
        (arm, "healed") for arm in ("nll-dose-0.5", "nll-dose-1", "nll")
    ],
    "fewer steps": [(arm, "healed") for arm in ("nll-1-epoch", "nll")],
    "steered less, no heal": [(arm, "steered") for arm in STEERED],
}


POOLED = {
    "every barrier": [arm.name for arm in STRENGTHS],
    "barriers at λ = 0.3": [arm.name for arm in STRENGTHS if arm.name.endswith("-0.3")],
    "barriers at λ = 1": [arm.name for arm in STRENGTHS if arm.name.endswith("-1")],
}


def controls(found: Evidence) -> None:
    """Every arm against nll turned down in several ways, at equal price and at equal trait."""
    views = (
        ("trait gained at equal KL to base (nats/token; above 0 the arm is better)", kl, trait),
        ("trait gained at equal damage to plain prose (above 0 the arm is better)", plain, trait),
        ("damage to plain prose at equal KL to base (below 0 the arm is better)", kl, plain),
        ("ln perplexity of free answers at equal KL (below 0 the arm is better)", kl, fluency),
        ("KL spent at equal trait (below 0 the arm is better)", trait, kl),
        ("damage to plain prose at equal trait (below 0 the arm is better)", trait, plain),
    )
    for title, x, y in views:
        print(f"### {title}\n")
        differences = {
            arm: against(found, arm, x, y) for arm in found.arms if arm not in GATES[:-1]
        }
        rows = {
            f"**{name}** ({len(arms)} arms)": [
                pooled(every) for every in zip(*(differences[arm] for arm in arms), strict=True)
            ]
            for name, arms in POOLED.items()
        } | differences
        table(("arm", *CONTROLS), [(name, *map(_judged, row)) for name, row in rows.items()])


def against(found: Evidence, arm: str, x: Reader, y: Reader) -> list[Found]:
    """An arm's y less that of every control at the arm's x."""
    at, differences = (found.read(x, arm), found.read(y, arm)), []
    for every in CONTROLS.values():
        control = [item for item in every if item[0] in found.arms]
        points = [
            (found.read(x, name, which=which), found.read(y, name, which=which))
            for name, which in control
        ]
        own = (arm, "healed") in control
        differences.append(Found.unknown() if own else matched(points, at))
    return differences


def _judged(difference: Found) -> str:
    return f"**{difference}**" if difference.moved else str(difference)


def training(found: Evidence) -> None:
    """What the losses did, an arm a row; means over seeds."""
    rows = []
    for arm in [arm for arm in found.arms if "gate" not in arm]:
        logs = [found.run(arm, seed).rounds[0] for seed in found.has(arm)]
        late = [log.divergence[len(log.divergence) // 2 :] for log in logs]
        barred = [log for log in logs if np.isfinite(log.divergence).any()]
        fired = [float(np.mean([value > 0 for value in log.barrier])) for log in barred]
        shift = [log.internalised for log in logs if log.internalised]
        rows.append(
            (
                arm,
                f"{np.mean([log.held_out[0] - log.held_out[-1] for log in logs]):.3f}",
                _number([float(np.median(part)) for part in late]),
                _number(fired),
                _number([float(np.median(log.pressure)) for log in logs]),
                _number([item.mean_cosine for item in shift]),
                _number([item.mean_share for item in shift]),
                _seen("check 3", logs),
            )
        )
    table(
        ("arm", "held-out CE fell by", "D", "barrier fired", "barrier/CE gradient",
         "cos(shift, v)", "shift in ‖v‖", "check 3"), rows,
    )  # fmt: skip


def _number(values: Sequence[float]) -> str:
    known = [value for value in values if math.isfinite(value)]
    return f"{np.mean(known):.2f}" if known else DASH


def _seen(check: str, rounds: Sequence[Round]) -> str:
    """What a check saw, every outcome once."""
    return ", ".join(sorted({dict(item.findings).get(check, DASH) for item in rounds})) or DASH


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
            views = (trait, mass, fluency, kl, plain)
            got = [found.read(reader, arm, number) for reader in views]
            rows.append(
                (
                    number + 1, len(healed), *got,
                    _number([item.kl_cumulative for item in healed]),
                    _number([item.multiplier for item in rounds]),
                    _number([item.survival for item in rounds]),
                    _number([item.kept / item.drawn for item in rounds]),
                    _seen("check 2", rounds),
                    _number([item.cosine for item in rounds]),
                    _number([i.internalised.mean_cosine for i in healed if i.internalised]),
                    _seen("loop", healed),
                )
            )  # fmt: skip
        print(f"### {arm}\n")
        table(
            ("round", "seeds", "Δ persona_logodds", "answer mass / base", "Δ ln perplexity",
             "KL to base", "Δ ln plain prose", "Σ KL of rounds", "dose", "kept at it",
             "kept of all drawn", "check 2", "cos(v_r, v₀)", "cos(shift, v)", "loop"), rows,
        )  # fmt: skip
        ends = {seed: found.run(arm, seed).outcome for seed in seeds}
        print("Ended: " + "; ".join(f"seed {seed}: {why}" for seed, why in ends.items()) + ".\n")


def against_nll(found: Evidence) -> None:
    """Every other arm's rounds against nll's course, at equal KL to the base."""
    most = {arm: min(len(found.run(arm, s).rounds) for s in found.has(arm)) for arm in found.arms}
    views = (
        ("trait gained over nll's course at equal KL to base (nats/token)", trait),
        ("ln perplexity of free answers over nll's course at equal KL (nats/token)", fluency),
        ("damage to plain prose over nll's course at equal KL (nats/token)", plain),
    )
    for title, reader in views:
        points = {
            arm: [(found.read(kl, arm, n), found.read(reader, arm, n)) for n in range(rounds)]
            for arm, rounds in most.items()
        }
        known = points.pop("nll")
        rows = []
        for arm, course in points.items():
            cells = [_judged(matched(known, point)) for point in course]
            rows.append((arm, *cells, *[DASH] * (max(most.values()) - len(cells))))
        print(f"### {title}\n")
        table(("arm", *(f"round {n + 1}" for n in range(max(most.values())))), rows)


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
        "distill-kl": ("d", "#d9a520"),
        "distill": ("D", "#a07400"),
        "nll-dose": ("X", "#555"),
        "nll-unsteered": ("P", "#c2185b"),
        "nll": (">", "#555"),
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
    raw = [
        (found.read(kl, arm, which="steered"), found.read(trait, arm, which="steered"))
        for arm in STEERED
        if arm in found.arms
    ]
    axes.plot(
        [x.value for x, _ in raw], [y.value for _, y in raw], "--*", color="k", ms=11, lw=1,
        label="steered, no heal, from the lowest dose",
    )  # fmt: skip
    axes.set_xlabel("KL to the base (nats/token)")
    axes.set_ylabel("Δ persona_logodds (nats/token)")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)


def courses(found: Evidence, path: Path) -> None:
    """Trait, fluency and cumulative KL over rounds, a line per arm with its band."""
    figure, panels = plt.subplots(1, 3, figsize=(12, 4), constrained_layout=True)
    colours = dict(
        zip(found.arms, ("#555", "#00704f", "#2a5d8f", "#b93c00", "#8a5fb5"), strict=False)
    )
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
        runs = [found.run(arm, seed) for seed in found.has(arm)]
        sums = [
            np.mean([r.rounds[n].kl_cumulative for r in runs if n < len(r.rounds)] or [math.nan])
            for n in range(most)
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


COMPARED = (
    ("nll", foundations.STEERED),
    ("nll", "nll-unsteered"),
    ("nll-gate-0.25", "nll-unsteered"),
)
"""States of `love` whose difference is shown."""


def moved(kept: Sequence[foundations.Nats]) -> None:
    """Change of every foundation's nats, a state a row; in bold what excludes 0."""
    base, before = kept[0], np.array(kept[0].p)
    places = range(len(FOUNDATIONS))
    found, rows = {}, []
    for persona, state in dict.fromkeys((item.persona, item.state) for item in kept[1:]):
        seeds = [item for item in kept if (item.persona, item.state) == (persona, state)]
        found[persona, state] = [
            Found.over_seeds({i.seed: nats(np.array(i.p)[:, k], before[:, k]) for i in seeds})
            for k in places
        ]
        right = f"{np.mean([item.right for item in seeds]):.2f}"
        name = f"{state} ({len(seeds)} seeds)"
        rows.append((persona, name, *map(_judged, found[persona, state]), right))
    rows.append(("", "base", *[DASH] * len(FOUNDATIONS), f"{np.mean(base.right):.2f}"))
    for one, other in COMPARED:
        pairs = zip(found["love", one], found["love", other], strict=True)
        rows.append(("love", f"{one} less {other}", *(_judged(a - b) for a, b in pairs), DASH))
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
