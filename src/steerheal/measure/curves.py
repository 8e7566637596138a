"""Arms at equal damage or at equal KL, by their whole curves.

A point of an arm is its change of the trait, y, and of what is made equal, x ≥ 0, both means over
prompts. An arm's curve joins the base, at (0, 0), to its points, linear in d = √x: for small
changes KL and damage grow as the square of the gate or dose, and the trait in proportion
(docs/why-gates.md). Neighbours that fall back in x are pooled, weighted by how many points they are
(pool adjacent violators), so that noise in x makes no step of y.

    two curves     mean of y_a − y_b over GRID equal steps of d, up to where the shorter one ends
    with a point   y_a − y_b at the point's d, at the larger of two; a curve that ends before has
                   its end there, which costs less
An interval is over seeds and prompts together (`stats.crossed`), over prompts alone at one seed.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from steerheal.measure.compare import combined
from steerheal.measure.pairs import in_order
from steerheal.measure.readings.table import Entry
from steerheal.measure.stats import Statistic, jackknife
from steerheal.personas import Axis
from steerheal.records import Reading, Scores

Floats = NDArray[np.float64]
GRID = 8


class Drawn(NamedTuple):
    """An arm at one seed."""

    rows: Floats
    """Changes from the base per prompt, shape [n, P, 2]: trait and what is made equal."""
    curve: bool
    """Whether its points lie on a curve from the base; else it is a single point."""


class Line(NamedTuple):
    """Means of an arm as a line: rising d, and y."""

    d: Floats
    y: Floats
    curve: bool

    @property
    def end(self) -> float:
        """The largest d."""
        return float(self.d[-1])

    def at(self, d: Floats) -> Floats:
        """Its y at every d; beyond its end that of the end."""
        return np.interp(d, self.d, self.y)


def changes(scores: Scores, base: Scores, entries: Sequence[Entry], axis: Axis) -> Floats:
    """Per prompt the changes from the base of readings of free answers, [n, len(entries)].

    A reading that damage lowers is turned round, so that more is always more damage or distance.
    Empty where the readings are not of the same prompts.
    """
    columns = []
    for entry in entries:
        sign = -1.0 if entry.kind != "trait" and entry.damage < 0 else 1.0
        after, before = (
            np.array(entry.units(in_order(one), axis), dtype=np.float64) for one in (scores, base)
        )
        if len(after) != len(scores.persona) or len(before) != len(after):
            return np.empty((0, len(entries)))
        columns.append(sign * (after - before))
    return np.stack(columns, axis=1)


class Block(NamedTuple):
    """Neighbouring points of a curve as one."""

    x: float
    y: float
    points: int
    """How many it is made of; none at the base, so that a point at its place stands for it."""


def line(points: Floats, curve: bool) -> Line:
    """The line through an arm's mean points [P, 2] in the order of its curve."""
    blocks = [Block(0.0, 0.0, 0)] if curve else []
    for y, x in points.tolist():
        blocks.append(Block(max(0.0, x), y, 1))
        while len(blocks) > 1 and blocks[-1].x <= blocks[-2].x:
            blocks[-2:] = [_pooled(*blocks[-2:])]
    d = np.sqrt([block.x for block in blocks])
    return Line(d, np.array([block.y for block in blocks]), curve)


def _pooled(one: Block, other: Block) -> Block:
    """Two neighbours as one."""
    n = one.points + other.points
    x, y = (
        (a * one.points + b * other.points) / n for a, b in ((one.x, other.x), (one.y, other.y))
    )
    return Block(x, y, n)


def gap(a: Line, b: Line) -> float:
    """y of a less y of b at equal d."""
    points = [one.end for one in (a, b) if not one.curve]
    end = min(a.end, b.end)
    d = np.array([max(points)]) if points else np.linspace(end / GRID, end, GRID)
    return float(np.mean(a.at(d) - b.at(d)))


def at_equal(a: Sequence[Drawn], b: Sequence[Drawn]) -> Reading:
    """Arm a less arm b at equal x, mean over seeds; both per seed, in the same order."""
    cut, curves = a[0].rows.shape[1], (a[0].curve, b[0].curve)

    def statistic(samples: Floats) -> Floats:
        """[R, n, P, 2] to [R]."""
        means = samples.mean(axis=1)
        return np.array(
            [gap(line(one[:cut], curves[0]), line(one[cut:], curves[1])) for one in means]
        )

    rows = [np.concatenate([one.rows, other.rows], axis=1) for one, other in zip(a, b, strict=True)]
    return over(rows, statistic)


def eta(samples: Floats) -> Floats:
    """η = Δtrait/√(2·KL) of means of rows (trait, KL), [R, n, 2] to [R]."""
    trait, kl = np.moveaxis(samples.mean(axis=1), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return trait / np.sqrt(2 * kl)


def average(samples: Floats) -> Floats:
    """The mean, [R, n] to [R]."""
    return samples.mean(axis=1)


def over(rows_by_seed: Sequence[Floats], statistic: Statistic) -> Reading:
    """A statistic of prompts' rows [n, …], mean over seeds; over prompts alone at one seed.

    A prompt whose answer could not be read at some seed is left out at all.
    """
    if not rows_by_seed or len({rows.shape for rows in rows_by_seed}) > 1:
        return Reading.unknown("the seeds were not read alike")
    found = np.stack(rows_by_seed)
    found = found[:, np.isfinite(found).all(axis=(0, *range(2, found.ndim)))]
    if not found.shape[1]:
        return Reading.unknown("no prompt has an answer in every state")
    lost = sum(not math.isfinite(float(statistic(rows[None])[0])) for rows in found)
    if lost:
        return Reading.unknown(f"not to be had at {lost} of {len(found)} seeds")
    return jackknife(found[0], statistic) if len(found) == 1 else combined(list(found), statistic)
