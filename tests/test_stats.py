"""Intervals hold what they promise at the sizes that are used; hand-worked numbers and laws."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from steerheal.measure import stats
from steerheal.records import Reading

TRIALS = 3000


def coverage(
    draw: Callable[[np.random.Generator], np.ndarray],
    read: Callable[[np.ndarray], Reading],
    truth: float,
    trials: int = TRIALS,
) -> float:
    """Share of the intervals that hold the truth, of those that there are."""
    random = np.random.default_rng(0)
    found = [read(draw(random)) for _ in range(trials)]
    known = [item for item in found if not math.isnan(item.low)]
    assert len(known) > trials / 2
    return sum(item.low <= truth <= item.high for item in known) / len(known)


def moves(draw: Callable[[np.random.Generator], np.ndarray], read: Callable) -> float:
    """Share of the readings that have moved."""
    random = np.random.default_rng(1)
    return sum(read(draw(random)).moved for _ in range(TRIALS)) / TRIALS


def probabilities(random: np.random.Generator, n: int, shift: float) -> np.ndarray:
    """A foundation's probability after and before, a vignette a row."""
    before = random.normal(-2.5, 1.5, n)
    after = before + shift + random.normal(0, 0.5, n)
    return 1 / (1 + np.exp(-np.stack([after, before], axis=1)))


# ── hand-worked ─────────────────────────────────────────────────────────────────────────────────


def test_a_mean_has_students_t() -> None:
    found = stats.mean([1.0, 2.0, 3.0])
    # s = 1, t with two degrees of freedom is 4.3027, over √3.
    assert found.value == 2 and found.n == 3
    assert found.high - 2 == pytest.approx(2 - found.low) == pytest.approx(4.302653 / math.sqrt(3))


def test_a_share_of_none_of_four_reaches_above_a_half() -> None:
    found = stats.share([0, 0, 0, 0])
    # z² = 3.8415: p = 1.9207/7.8415 = 0.2449, and 1.96·√(0.2449·0.7551/7.8415) = 0.3010.
    assert found.value == 0 and found.low == 0
    assert found.high == pytest.approx(0.5459, abs=1e-4)
    assert stats.share([1, 1, 1, 1]).low == pytest.approx(1 - 0.5459, abs=1e-4)


def test_flips_that_all_go_one_way_still_have_a_width() -> None:
    found = stats.share_change([1.0] * 4)
    # Six numbers of mean 4/6 and square sum 5: s² = (5 − 16/6)/5, t with five degrees 2.5706.
    reach = 2.5706 * math.sqrt((5 - 16 / 6) / 5 / 6)
    assert found.value == 1 and found.n == 4
    assert (found.low, found.high) == pytest.approx((4 / 6 - reach, 4 / 6 + reach), abs=1e-4)
    still = stats.share_change([0.0] * 10)
    assert still.value == 0 and still.low < 0 < still.high


def test_the_ends_of_a_ratio_are_where_the_difference_is_just_not_0() -> None:
    random = np.random.default_rng(3)
    pair = np.stack([random.normal(0.8, 0.4, 9), random.normal(1, 0.3, 9)], axis=1)
    found = stats.ratio(pair)
    for end in (found.low, found.high):
        rest = stats.mean(pair[:, 0] - end * pair[:, 1])
        assert min(abs(rest.low), abs(rest.high)) == pytest.approx(0, abs=1e-9)
    assert found.value == pytest.approx(pair[:, 0].mean() / pair[:, 1].mean())


def test_what_is_divided_by_what_may_be_0_is_unknown() -> None:
    pair = np.array([[1.0, 0.5], [1.1, -0.5], [0.9, 0.4]])
    assert "its interval includes 0" in stats.ratio(pair).reason
    assert math.isnan(stats.quotient(stats.mean([1.0, 2.0]), stats.mean([-1.0, 1.0])).value)


def test_a_quotient_of_two_readings_reaches_as_far_as_its_parts() -> None:
    top = Reading(value=0.2, low=0.1, high=0.3, n=32)
    bottom = Reading(value=1.0, low=0.9, high=1.1, n=20)
    found = stats.quotient(top, bottom)
    # (0.2 − θ)² = 0.01 + 0.01·θ²: 0.99·θ² − 0.4·θ + 0.03 = 0.
    reach = math.sqrt(0.04 - 0.99 * 0.03)
    assert (found.low, found.high) == pytest.approx(((0.2 - reach) / 0.99, (0.2 + reach) / 0.99))
    assert found.n == 20
    exact = stats.quotient(top, Reading(value=2.0, low=2.0, high=2.0, n=9))
    assert (exact.low, exact.high) == pytest.approx((0.05, 0.15))


def test_independent_variances_add_up_with_satterthwaites_degrees_of_freedom() -> None:
    found = stats.sum_of(1.0, [(0.04, 2), (0.01, 9)], 3)
    # 0.05² / (0.04²/2 + 0.01²/9) = 3.08, so three: t is 3.1824.
    reach = 3.182446 * math.sqrt(0.05)
    assert (found.low, found.high) == pytest.approx((1 - reach, 1 + reach))
    alone = stats.sum_of(1.0, [(0.0, 2), (0.01, 9)], 3)
    assert alone.high - 1 == pytest.approx(2.262157 * 0.1)


def test_with_two_seeds_every_variance_has_its_own_t() -> None:
    found = stats.sum_of(1.0, [(0.04, 1), (0.01, 9)], 2)
    # t: 12.7062 with one degree, 2.2622 with nine.
    reach = math.hypot(12.706205 * 0.2, 2.262157 * 0.1)
    assert (found.low, found.high) == pytest.approx((1 - reach, 1 + reach))
    still = stats.sum_of(1.0, [(0.0, 2), (0.0, 9)], 3)
    assert (still.low, still.high) == (1, 1)


# ── laws ────────────────────────────────────────────────────────────────────────────────────────


def test_the_other_way_round_a_log_ratio_changes_its_sign() -> None:
    pair = probabilities(np.random.default_rng(4), 24, 0.4)
    one, other = stats.log_ratio(pair), stats.log_ratio(pair[:, ::-1])
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))


@pytest.mark.parametrize("shift", [0.0, 0.2, 0.5])
def test_a_foundation_moves_exactly_where_its_mean_difference_does(shift: float) -> None:
    random = np.random.default_rng(5)
    for _ in range(200):
        pair = probabilities(random, 24, shift)
        assert stats.log_ratio(pair).moved == stats.mean(pair[:, 0] - pair[:, 1]).moved


def test_of_a_mean_the_jackknife_is_students_t() -> None:
    values = np.random.default_rng(6).normal(0.2, 1, 11)
    found, plain = stats.jackknife(values, lambda sample: sample.mean(axis=1)), stats.mean(values)
    assert (found.value, found.low, found.high) == pytest.approx(
        (plain.value, plain.low, plain.high)
    )


def test_equal_states_have_not_moved_and_units_that_agree_leave_no_width() -> None:
    same = np.random.default_rng(7).random((12, 1)).repeat(2, axis=1)
    for found in (stats.log_ratio(same), stats.mean(same[:, 0] - same[:, 1])):
        assert found.value == 0 and not found.moved
    found = stats.mean([0.5, 0.5, 0.5])
    assert (found.low, found.high) == (0.5, 0.5)
    twice = stats.log_ratio(same * [2.0, 1.0])
    assert (twice.low, twice.high) == pytest.approx((math.log(2), math.log(2)))


@pytest.mark.parametrize(
    "read",
    [stats.mean, stats.share_change, stats.ratio, stats.log_ratio,
     lambda rows: stats.jackknife(rows, stats.log_of_means)],
)  # fmt: skip
def test_nothing_one_and_nan_say_why_there_is_no_interval(read: Callable) -> None:
    wide = read in (stats.ratio, stats.log_ratio) or read not in (stats.mean, stats.share_change)
    one = np.array([[0.4, 0.2]]) if wide else np.array([0.4])
    assert read(one[:0]).reason == "nothing was measured"
    alone = read(one)
    assert math.isnan(alone.low) and alone.reason == stats.ONE and not alone.moved
    broken = np.concatenate([one, np.full_like(one, math.nan)])
    assert read(broken).reason == "1 of 2 units are not finite" and math.isnan(read(broken).value)


def test_a_foundation_without_probability_has_no_nats() -> None:
    assert "has no logarithm" in stats.log_ratio(np.array([[0.0, 0.2], [0.0, 0.3]])).reason
    assert "has no logarithm" in stats.log_ratio(np.array([[0.1, 0.0], [0.2, 0.0]])).reason


def test_a_foundation_on_one_vignette_alone_has_a_value_and_no_interval() -> None:
    found = stats.log_ratio(np.array([[0.5, 0.4], [0.0, 0.0], [0.0, 0.0]]))
    assert found.value == pytest.approx(math.log(5 / 4)) and math.isnan(found.low)
    assert "one unit alone" in found.reason and not found.moved


def test_two_looks_widen_an_interval_as_bonferroni_says() -> None:
    one = stats.mean(np.random.default_rng(8).normal(0, 1, 10))
    two = stats.widened(one, 2)
    # t with nine degrees of freedom: 2.6850 at 1 − 0.05/4, 2.2622 at 0.975.
    assert (two.high - two.value) / (one.high - one.value) == pytest.approx(
        2.68501 / 2.26216, rel=1e-5
    )
    assert stats.widened(one, 1) == one
    assert stats.widened(Reading(value=1.0, n=1), 3).low != 0


# ── what is promised ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("n", [4, 8, 10, 20, 32, 154])
def test_the_mean_of_normal_differences_is_held_at_every_size(n: int) -> None:
    held = coverage(lambda random: random.normal(0.3, 1, n), stats.mean, 0.3)
    assert 0.935 <= held <= 0.965


@pytest.mark.parametrize(("n", "least"), [(4, 0.86), (8, 0.89), (20, 0.91), (32, 0.915)])
def test_the_mean_of_skewed_numbers_is_held_with_the_stated_deficit(n: int, least: float) -> None:
    held = coverage(lambda random: random.exponential(1, n), stats.mean, 1)
    assert least <= held <= 0.96


@pytest.mark.parametrize("p", [0.05, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("n", [8, 10, 20, 154])
def test_a_share_is_held(n: int, p: float) -> None:
    held = coverage(lambda random: (random.random(n) < p).astype(float), stats.share, p)
    assert held >= 0.91


@pytest.mark.long
@pytest.mark.parametrize(("up", "down"), [(0.05, 0.05), (0.3, 0.1), (0.5, 0.0), (0.8, 0.0)])
@pytest.mark.parametrize("n", [4, 10, 20])
def test_the_change_of_a_share_is_held(n: int, up: float, down: float) -> None:
    def draw(random: np.random.Generator) -> np.ndarray:
        u = random.random(n)
        return (u < up).astype(float) - (u > 1 - down)

    assert coverage(draw, stats.share_change, up - down) >= 0.925


@pytest.mark.parametrize("n", [8, 20, 154])
def test_a_ratio_of_means_is_held_where_it_is_known(n: int) -> None:
    def draw(random: np.random.Generator) -> np.ndarray:
        steered = random.normal(1, 0.6, n)
        return np.stack([0.8 * steered + random.normal(0, 0.3, n), steered], axis=1)

    assert 0.935 <= coverage(draw, stats.ratio, 0.8) <= 0.97


@pytest.mark.long
@pytest.mark.parametrize(("n", "least"), [(4, 0.89), (8, 0.93), (20, 0.93), (154, 0.94)])
def test_a_foundations_nats_are_held(n: int, least: float) -> None:
    many = probabilities(np.random.default_rng(9), 4_000_000, 0.5)
    truth = math.log(many[:, 0].mean() / many[:, 1].mean())
    held = coverage(lambda random: probabilities(random, n, 0.5), stats.log_ratio, truth)
    assert least <= held <= 0.975


@pytest.mark.parametrize("n", [8, 10, 20, 32])
def test_a_foundation_that_does_not_change_moves_in_one_case_of_twenty(n: int) -> None:
    def draw(random: np.random.Generator) -> np.ndarray:
        act = random.normal(-2.5, 1.5, (n, 1))
        return 1 / (1 + np.exp(-act - random.normal(0, 0.5, (n, 2))))

    assert moves(draw, stats.log_ratio) <= 0.06


@pytest.mark.long
@pytest.mark.parametrize(
    ("seeds", "between", "shared"), [(2, 0.3, 0.0), (2, 0.3, 1.0), (3, 0.3, 0.0), (8, 0.3, 1.0)]
)
@pytest.mark.parametrize("n", [4, 20, 32])
def test_seeds_and_units_together_are_held(
    n: int, seeds: int, between: float, shared: float
) -> None:
    def draw(random: np.random.Generator) -> np.ndarray:
        units = random.normal(0, shared, n)
        return (
            0.3 + random.normal(0, between, (seeds, 1)) + units
            + random.normal(0, 0.5, (seeds, n))
        )  # fmt: skip

    assert coverage(draw, stats.crossed, 0.3, trials=2000) >= 0.92
