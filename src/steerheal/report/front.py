"""The Pareto front of points, and the knee of a front; both axes are better the larger they are.

The knee is the point farthest above the chord between the front's two ends, after both axes are
scaled so that the front spans 0 to 1 on each: from there on, more of one costs most of the other.

Source: Satopaa et al. 2011, "Finding a kneedle in a haystack".
"""

import math
from collections.abc import Sequence

Point = tuple[float, float]


def front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other beats, from the least to the largest x.

    A point is beaten by one that is at least as good on both axes and better on one; equal points
    do not beat each other. A point with a value that is not finite is never on the front.
    """
    known = [i for i, point in enumerate(points) if all(map(math.isfinite, point))]
    kept = [i for i in known if not any(_beats(points[j], points[i]) for j in known)]
    return sorted(kept, key=lambda i: (*points[i], i))


def knee(points: Sequence[Point]) -> int | None:
    """Index of the front's knee; None without a finite point.

    A front of one or two distinct points, or one that nowhere bulges above its chord, has no knee:
    its end with the most y is given.
    """
    found = _bend(points)
    return found if found is not None else next(iter(front(points)), None)


def bends(points: Sequence[Point]) -> bool:
    """Whether the front has a knee that is no end of it."""
    return _bend(points) is not None


def _bend(points: Sequence[Point]) -> int | None:
    """Index of the point farthest above the chord; None where none is above it."""
    kept = front(points)
    if len({points[i] for i in kept}) < 2:
        return None
    (x0, y0), (x1, y1) = points[kept[0]], points[kept[-1]]

    def above(i: int) -> float:
        """Twice the area over the chord, which the distance from it is proportional to."""
        x, y = points[i]
        return (x - x0) / (x1 - x0) + (y - y1) / (y0 - y1) - 1

    best = max(kept, key=above)
    return best if above(best) > 1e-9 else None


def _beats(one: Point, other: Point) -> bool:
    return one[0] >= other[0] and one[1] >= other[1] and one != other
