"""Intervals at 95 % over independent units (prompts, vignettes, seeds): the only ones there are.

A difference is taken within a unit, so that what two states share cancels. With m a mean over n
units, s the units' standard deviation and t the quantile of Student's t with n − 1 degrees of
freedom:

    mean          m ± t·s/√n
    share         of k among n: p ± z·√(p(1 − p)/N), p = (k + z²/2)/N, N = n + z²
    share_change  the mean's, after one unit more that gained √½ and one that lost it
    ratio         every θ with |m_a − θ·m_b| ≤ t·s(a − θ·b)/√n: Fieller's
    log_ratio     ln of that; where it has no two ends above 0, the jackknife's
    jackknife     v ± t·√((n − 1)/n · Σ (v₋ᵢ − mean v₋ᵢ)²), v₋ᵢ the value without unit i
    quotient      of two independent readings, from their own half-widths: MOVER's
    sum_of        v ± t·√Σ u_k for independent variances u_k with f_k degrees of freedom each; t
                  has (Σ u_k)² / Σ u_k²/f_k of them, rounded down: Satterthwaite's
How often each holds the truth at which n: benchmarks/coverage.py. No interval is claimed for a
median. Nothing is drawn at random.

Sources: Fieller 1954, J. R. Stat. Soc. B 16; Agresti & Coull 1998, Am. Stat. 52; Agresti & Min
2005, Stat. Med. 24; Donner & Zou 2012, Stat. Methods Med. Res. 21; Satterthwaite 1946, Biometrics
Bulletin 2.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from steerheal.records import Reading

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Samples of rows, shape [R, n, …], to one value per sample, shape [R]."""
LEVEL = 0.95
ONE = "one unit has no interval"
MAY_BE_0 = "what it is divided by may be 0: its interval includes 0"


def quantile(freedom: float, level: float = LEVEL) -> float:
    """What |Student's t| exceeds with probability 1 − level."""
    return float(stdtrit(freedom, (1 + level) / 2))


def mean(values: ArrayLike) -> Reading:
    """The mean; units that all read the same leave an interval without width."""
    data = np.asarray(values, dtype=np.float64)
    if lost := _unusable(data):
        return lost
    return _around(float(data.mean()), _error(data), len(data))


def share(values: ArrayLike) -> Reading:
    """The share of units for which something holds, from 1s and 0s."""
    data = np.asarray(values, dtype=np.float64)
    if lost := _unusable(data):
        return lost
    if len(data) < 2:
        return mean(data)
    z = quantile(math.inf)
    size = len(data) + z**2
    middle = (float(data.sum()) + z**2 / 2) / size
    reach = z * math.sqrt(max(0.0, middle * (1 - middle)) / size)
    low, high = max(0.0, middle - reach), min(1.0, middle + reach)
    return Reading(value=float(data.mean()), low=low, high=high, n=len(data))


def share_change(changes: ArrayLike) -> Reading:
    """The change of a share, from what each unit gained: −1, 0 or 1.

    Few units flip, and often none the other way, so that their own spread says too little.
    """
    data = np.asarray(changes, dtype=np.float64)
    if lost := _unusable(data):
        return lost
    if len(data) < 2:
        return mean(data)
    found = mean([*data, math.sqrt(0.5), -math.sqrt(0.5)])
    return found.model_copy(update={"value": float(data.mean()), "n": len(data)})


def ratio(pairs: ArrayLike) -> Reading:
    """Mean of column 0 over the mean of column 1, unknown where the latter may be 0."""
    data = np.asarray(pairs, dtype=np.float64)
    if lost := _unusable(data):
        return lost
    if not mean(data[:, 1]).moved:
        return Reading.unknown(ONE if len(data) < 2 else MAY_BE_0)
    low, high = _fieller(data)
    top, bottom = data.mean(axis=0)
    return _within(float(top / bottom), low, high, len(data))


def log_ratio(pairs: ArrayLike) -> Reading:
    """ln of the mean of column 0 over the mean of column 1, both of numbers that are not negative.

    Its interval excludes 0 where that of the mean difference does.
    """
    data = np.asarray(pairs, dtype=np.float64)
    if lost := _unusable(data):
        return lost
    top, bottom = data.mean(axis=0)
    if not (top > 0 and bottom > 0):
        return Reading.unknown("a mean is 0, which has no logarithm")
    low, high = _fieller(data)
    if not (low > 0 and math.isfinite(high)):
        return jackknife(data, log_of_means)
    found = _within(float(top / bottom), low, high, len(data))
    ends = {name: math.log(getattr(found, name)) for name in ("value", "low", "high")}
    return found.model_copy(update=ends)


def log_of_means(sample: Floats) -> Floats:
    """ln of the mean of column 0 over that of column 1, a value per sample."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(sample[..., 0].mean(axis=1) / sample[..., 1].mean(axis=1))


def jackknife(rows: ArrayLike, statistic: Statistic) -> Reading:
    """Any smooth statistic of means, from what it is without each unit."""
    data = np.asarray(rows, dtype=np.float64)
    if lost := _unusable(data):
        return lost
    value, error = _jackknife(data, statistic)
    if not math.isfinite(value):
        return Reading.unknown("not finite")
    if len(data) > 1 and not math.isfinite(error):
        return Reading(value=value, n=len(data), reason="one unit alone carries it: no interval")
    return _around(value, error, len(data))


def quotient(top: Reading, bottom: Reading) -> Reading:
    """One reading over another of other units, from intervals that are even about their values."""
    if not bottom.moved:
        return Reading.unknown(bottom.reason or MAY_BE_0)
    value, n = top.value / bottom.value, min(top.n, bottom.n)
    if math.isnan(top.low):
        return Reading(value=value, n=n, reason=top.reason)
    low, high = _roots(
        top.value**2 - (top.value - top.low) ** 2,
        top.value * bottom.value,
        bottom.value**2 - (bottom.value - bottom.low) ** 2,
    )
    return _within(value, low, high, n)


def sum_of(value: float, parts: Sequence[tuple[float, int]], n: int) -> Reading:
    """A value whose variance is a sum of independent ones, each with its degrees of freedom.

    With one degree of freedom, so at two seeds, Satterthwaite's interval holds the truth in as few
    as 0.87 of the cases: every part then has its own t, and their squared reaches add up.
    """
    whole = math.fsum(part for part, _ in parts)
    if min(free for _, free in parts) > 1 and whole > 0:
        freedom = math.floor(whole**2 / math.fsum(part**2 / free for part, free in parts))
        reach = quantile(freedom) * math.sqrt(whole)
    else:
        reach = math.sqrt(math.fsum(quantile(free) ** 2 * part for part, free in parts))
    return Reading(value=value, low=value - reach, high=value + reach, n=n)


def crossed(rows_by_seed: Sequence[Floats] | Floats, statistic: Statistic | None = None) -> Reading:
    """Mean over seeds of a statistic (the mean) of units that all seeds share.

    Per seed one row per unit, shape [n, …], units in the same order. The variance is that between
    seeds plus that between units; what a unit does to one seed alone is counted in both, so that
    the interval is rather too wide than too narrow.
    """
    data = np.asarray(rows_by_seed, dtype=np.float64)
    if lost := _unusable(data):
        return lost

    def over_seeds(samples: Floats) -> Floats:
        """[R, n, S, …] to [R]."""
        seeds = [(statistic or _mean)(samples[:, :, k]) for k in range(len(data))]
        return np.mean(seeds, axis=0)

    between = np.array([float((statistic or _mean)(rows[None])[0]) for rows in data])
    value, within = _jackknife(np.swapaxes(data, 0, 1), over_seeds)
    if not math.isfinite(value + within):
        return Reading.unknown("not finite")
    seeds, units = data.shape[:2]
    parts = [(_error(between) ** 2, seeds - 1), (within**2, max(1, units - 1))]
    return sum_of(value, parts, seeds)


def widened(reading: Reading, looks: int) -> Reading:
    """The reading with an interval that holds at all of so many looks together: Bonferroni's."""
    if looks < 2 or math.isnan(reading.low) or reading.n < 2:
        return reading
    freedom = reading.n - 1
    times = quantile(freedom, 1 - (1 - LEVEL) / looks) / quantile(freedom)
    low, high = (
        reading.value + times * (end - reading.value) for end in (reading.low, reading.high)
    )
    return reading.model_copy(update={"low": low, "high": high})


def p_value(reading: Reading) -> float:
    """Two-sided p of 0 by a reading's own interval, whose t has its units less one as freedom.

    Where the interval has more degrees of freedom, p is rather too large than too small below the
    level. NaN without an interval.
    """
    if math.isnan(reading.low) or reading.n < 2:
        return math.nan
    reach = (reading.high - reading.low) / 2
    if not reach > 0:
        return 0.0 if reading.value else 1.0
    free = reading.n - 1
    return float(2 * stdtr(free, -abs(reading.value) / reach * quantile(free)))


def holm(values: Sequence[float]) -> list[float]:
    """P-values by Holm's steps, so that they hold together; one that is NaN counts for none."""
    known = sorted((value, i) for i, value in enumerate(values) if not math.isnan(value))
    found, worst = [math.nan] * len(values), 0.0
    for step, (value, i) in enumerate(known):
        worst = max(worst, min(1.0, (len(known) - step) * value))
        found[i] = worst
    return found


def _unusable(data: Floats) -> Reading | None:
    """What is said of rows that nothing can be made of."""
    if len(data) == 0:
        return Reading.unknown("nothing was measured")
    finite = np.isfinite(data.reshape(len(data), -1)).all(axis=1)
    if not finite.all():
        return Reading.unknown(f"{int((~finite).sum())} of {len(data)} units are not finite")
    return None


def _mean(samples: Floats) -> Floats:
    return samples.mean(axis=1)


def _error(data: Floats) -> float:
    """Standard error of the mean; NaN for one unit."""
    return float(data.std(ddof=1)) / math.sqrt(len(data)) if len(data) > 1 else math.nan


def _around(value: float, error: float, n: int) -> Reading:
    if n < 2:
        return Reading(value=value, n=n, reason=ONE)
    reach = quantile(n - 1) * error
    return Reading(value=value, low=value - reach, high=value + reach, n=n)


def _within(value: float, low: float, high: float, n: int) -> Reading:
    """The value in its interval; rounding must not put it beside one without width."""
    return Reading(value=value, low=min(low, value), high=max(high, value), n=n)


def _jackknife(data: Floats, statistic: Statistic) -> tuple[float, float]:
    """The statistic of rows [n, …], and its standard error; NaN for one row."""
    n = len(data)
    value = float(statistic(data[None])[0])
    if n < 2:
        return value, math.nan
    rest = np.array([np.delete(data, i, axis=0) for i in range(n)])
    with np.errstate(invalid="ignore"):
        without = statistic(rest)
        spread = float(((without - without.mean()) ** 2).sum())
    return value, math.sqrt((n - 1) / n * spread)


def _fieller(data: Floats) -> tuple[float, float]:
    """Bounds of the ratio of two means over the same units; infinite where there are none."""
    if len(data) < 2:
        return math.nan, math.nan
    top, bottom = data.mean(axis=0)
    noise = quantile(len(data) - 1) ** 2 * np.cov(data.T) / len(data)
    return _roots(
        float(top**2 - noise[0, 0]),
        float(top * bottom - noise[0, 1]),
        float(bottom**2 - noise[1, 1]),
    )


def _roots(constant: float, linear: float, square: float) -> tuple[float, float]:
    """Where constant − 2·linear·θ + square·θ² ≤ 0, if that is one stretch."""
    if not square > 0:
        return -math.inf, math.inf
    # Rounding alone can put the two ends, where they are one, below 0 under the root.
    reach = math.sqrt(max(0.0, linear**2 - constant * square))
    return (linear - reach) / square, (linear + reach) / square
