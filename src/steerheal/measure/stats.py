"""Intervals: paired bootstrap over independent units (prompts, vignettes).

A difference is resampled as a difference: the same units are drawn for both states, so that what
they share cancels. Percentile intervals at 95 %, seeded.

Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, ch. 13.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from steerheal.records import Reading

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Rows resampled, shape [R, n, …], to one value per resample, shape [R]."""
LEVEL = (2.5, 97.5)


def bootstrap(
    rows: NDArray[np.float64] | Sequence[float],
    statistic: Statistic | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Reading:
    """The statistic of the rows with its 95 % percentile interval.

    Args:
        rows: One row per unit, shape [n, …]; the mean is taken when no statistic is given.
        statistic: From resampled rows [R, n, …] to [R] values.
        resamples: How many resamples.
        seed: Of the resampling; the same for every state, so that comparisons are paired.
    """
    data = np.asarray(rows, dtype=np.float64)
    measure = statistic or (lambda sample: sample.mean(axis=1))
    if len(data) == 0:
        return Reading.unknown("nothing was measured")
    if not np.isfinite(data).all():
        bad = int((~np.isfinite(data.reshape(len(data), -1)).all(axis=1)).sum())
        return Reading.unknown(f"{bad} of {len(data)} units are not finite")
    value = float(measure(data[None])[0])
    if len(data) == 1:
        return Reading(value=value, n=1, reason="one unit has no interval")
    picks = np.random.default_rng(seed).integers(0, len(data), (resamples, len(data)))
    # In slices, so that memory stays bounded by about a million resampled rows.
    width = max(1, 1_000_000 // len(data))
    values = np.concatenate(
        [measure(data[picks[i : i + width]]) for i in range(0, resamples, width)]
    )
    low, high = np.percentile(values, LEVEL)
    return Reading(value=value, low=float(low), high=float(high), n=len(data))


def log_mean_ratio(sample: NDArray[np.float64]) -> NDArray[np.float64]:
    """ln of the mean of column 0 over the mean of column 1: the change in a foundation's nats."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(sample[..., 0].mean(axis=1) / sample[..., 1].mean(axis=1))


def ratio(sample: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of column 0 over the mean of column 1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return sample[..., 0].mean(axis=1) / sample[..., 1].mean(axis=1)


def finite_or_unknown(reading: Reading, reason: str) -> Reading:
    """The reading, or an unknown one with the reason when it is not finite."""
    return reading if math.isfinite(reading.value) else Reading.unknown(reason)
