"""How often the product's 95 % intervals hold the truth, at the sizes that are used.

Every row is a kind of reading on data whose truth is known; every column a number of units. The
last row of each kind is how often a reading "moves" where nothing does. Rows named `percentile` are
what resampling would give, for comparison.

    python benchmarks/coverage.py [--trials 4000]
"""

import argparse
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from steerheal.measure import stats
from steerheal.records import Reading

Floats = NDArray[np.float64]
Random = np.random.Generator
SIZES = (4, 8, 10, 20, 32, 154)
RESAMPLES = 500


class Kind(NamedTuple):
    """A reading on a kind of data."""

    title: str
    draw: Callable[[Random, int], Floats]
    read: Callable[[Floats], Reading]
    truth: float


def normal(random: Random, n: int) -> Floats:
    """Paired differences as they mostly are."""
    return random.normal(0.3, 1, n)


def skewed(random: Random, n: int) -> Floats:
    """Exponential: skewness 2, about that of KLs over prompts."""
    return random.exponential(1, n)


def bernoulli(p: float) -> Callable[[Random, int], Floats]:
    """1s and 0s."""
    return lambda random, n: (random.random(n) < p).astype(float)


def flips(up: float, down: float) -> Callable[[Random, int], Floats]:
    """What every unit of a paired share gained."""

    def draw(random: Random, n: int) -> Floats:
        u = random.random(n)
        return (u < up).astype(float) - (u > 1 - down)

    return draw


def kept(random: Random, n: int) -> Floats:
    """Healed and steered gains of the same prompts, correlated; retain 0.8."""
    steered = random.normal(1, 0.6, n)
    return np.stack([0.8 * steered + random.normal(0, 0.3, n), steered], axis=1)


def masses(spread: float, shift: float) -> Callable[[Random, int], Floats]:
    """A foundation's probability on every vignette before (column 1) and after."""

    def draw(random: Random, n: int) -> Floats:
        before = random.normal(-2.5, spread, n)
        after = before + random.normal(shift, 0.5, n)
        return 1 / (1 + np.exp(-np.stack([after, before], axis=1)))

    return draw


def truth_of(draw: Callable[[Random, int], Floats]) -> float:
    """ln of the ratio of means on a sample so large that it is one."""
    many = draw(np.random.default_rng(1), 8_000_000)
    return float(np.log(many[:, 0].mean() / many[:, 1].mean()))


def selectivity(random: Random, n: int) -> Floats:
    """Seven changes per vignette, the first of which is meant."""
    return random.normal(0, 1, (n, 7)) + np.array([0.5, 0.3, 0, 0, 0, 0, 0])


def gated(samples: Floats) -> Floats:
    """Move on the axis less a tenth of the mean |move| off it."""
    moved = samples.mean(axis=1)
    return moved[:, 0] - 0.1 * np.abs(moved[:, 1:]).mean(axis=1)


def cost(random: Random, n: int) -> Floats:
    """Answer masses and log-odds of different units, in one array."""
    return np.concatenate([random.normal(0.1, 0.15, n), random.normal(0.5, 0.3, n)])


def spent(data: Floats) -> Reading:
    """Mass per nat."""
    half = len(data) // 2
    return stats.quotient(stats.mean(data[:half]), stats.mean(data[half:]))


def crossed(seeds: int, between: float, shared: float) -> Callable[[Random, int], Floats]:
    """Seeds times units; both vary, and so does every pair of them."""

    def draw(random: Random, n: int) -> Floats:
        units = random.normal(0, shared, n)
        return (
            0.3 + random.normal(0, between, (seeds, 1)) + units + random.normal(0, 0.5, (seeds, n))
        )

    return draw


def percentile(statistic: Callable[[Floats], Floats]) -> Callable[[Floats], Reading]:
    """The interval that resampling the units gives."""

    def read(data: Floats) -> Reading:
        picks = np.random.default_rng(0).integers(0, len(data), (RESAMPLES, len(data)))
        low, high = np.percentile(statistic(data[picks]), (2.5, 97.5))
        return Reading(value=float(statistic(data[None])[0]), low=low, high=high, n=len(data))

    return read


def average(samples: Floats) -> Floats:
    """The mean of every sample."""
    return samples.mean(axis=1)


def kinds() -> list[Kind]:
    """Everything that is tried."""
    found = [
        Kind("mean, normal", normal, stats.mean, 0.3),
        Kind("  percentile", normal, percentile(average), 0.3),
        Kind("mean, exponential", skewed, stats.mean, 1.0),
        Kind("  percentile", skewed, percentile(average), 1.0),
        *(Kind(f"share, {p:g}", bernoulli(p), stats.share, p) for p in (0.1, 0.5, 0.9)),
    ]
    for up, down in ((0.1, 0.1), (0.3, 0.1), (0.5, 0.0)):
        title, draw = f"change of a share, +{up:g} −{down:g}", flips(up, down)
        found.append(Kind(title, draw, stats.share_change, up - down))
        found.append(Kind("  percentile", draw, percentile(average), up - down))
    found += [
        Kind("retain (ratio)", kept, stats.ratio, 0.8),
        Kind("coh_cost (quotient)", cost, spent, 0.2),
    ]
    for spread, shift in ((1.0, 0.5), (2.0, 0.5), (3.0, 0.5), (2.0, 0.0)):
        draw = masses(spread, shift)
        truth = truth_of(draw)
        found.append(
            Kind(f"Δ nats, spread {spread:g}, shift {shift:g}", draw, stats.log_ratio, truth)
        )
        found.append(Kind("  percentile", draw, percentile(stats.log_of_means), truth))
    off = 0.1 * 0.3 / 6
    found.append(
        Kind("gated selectivity", selectivity, lambda x: stats.jackknife(x, gated), 0.5 - off)
    )
    for seeds in (2, 3, 8):
        for between, shared in ((0.3, 0.0), (0.0, 1.0), (0.3, 1.0)):
            title = f"{seeds} seeds, sd {between:g} of seeds, {shared:g} of units"
            found.append(Kind(title, crossed(seeds, between, shared), stats.crossed, 0.3))
    return found


def coverage(kind: Kind, n: int, trials: int) -> tuple[float, float]:
    """Share of intervals that hold the truth, and of trials that have one."""
    random, held, known = np.random.default_rng(n), 0, 0
    for _ in range(trials):
        reading = kind.read(kind.draw(random, n))
        if not math.isnan(reading.low):
            known += 1
            held += reading.low <= kind.truth <= reading.high
    return held / max(1, known), known / trials


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=4000)
    trials = parser.parse_args().trials
    print("| reading | " + " | ".join(f"n = {n}" for n in SIZES) + " |")
    print("|---" * (len(SIZES) + 1) + "|")
    for kind in kinds():
        many = trials if "percentile" not in kind.title else min(trials, 2000)
        cells = []
        for n in SIZES:
            held, known = coverage(kind, n, many)
            cells.append(f"{held:.4f}" + (f" (of {known:.4f})" if known < 1 else ""))
        print(f"| {kind.title} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
