"""Streams of random numbers: every use in a run draws from one of its own.

A run's seed has 1,009 streams, and the i-th draw of a stream is seeded by stream·1,000,003 + i, so
that no two uses, rounds or seeds share a draw. The filter's calibration has the last stream of the
seed below.
"""

PER_SEED = 1_009
HARVEST, CURVE, UNSTEERED, ON_POLICY = 0, 200, 400, 600
"""First of a hundred each, one per round; on policy one per time that the student writes."""
CALIBRATION, EVALUATION, TEST, SWEEP, ANCHOR, WORDING, LASTING, OPPOSED = (
    -1, 900, 901, 902, 903, 904, 905, 906,
)  # fmt: skip


def stream(seed: int, use: int, number: int = 0) -> int:
    """The stream of a use, in a round where it has one in each.

    Args:
        seed: The run's.
        use: One of the names above.
        number: The round, from 0.
    """
    return seed * PER_SEED + use + number
