"""Comparisons of two states, selectivity, and seeds; all rows are synthetic."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from reports import put
from steerheal.errors import UserError
from steerheal.measure import compare as compare_module
from steerheal.measure.compare import Comparison, across_seeds, combined, compare
from steerheal.measure.readings.axis import clr, gated_selectivity, intent_of, si_flips
from steerheal.measure.stats import log_of_means
from steerheal.measure.summary import summarise
from steerheal.personas import Axis
from steerheal.records import (
    FOUNDATIONS,
    CanaryRow,
    Completion,
    PersonaRow,
    Reading,
    Scores,
    VignetteRow,
)

AXIS = Axis(foundation="authority", sign=-1, off_target=("care", "fairness"))
AUTHORITY = FOUNDATIONS.index("authority")


def vignette(i: int, score: Sequence[float], *, mass: float = 0.9) -> VignetteRow:
    raw = np.asarray(score, dtype=float)
    p = np.exp(raw - raw.max()) / np.exp(raw - raw.max()).sum()
    return VignetteRow(
        id=f"v{i}", condition="other", foundation=FOUNDATIONS[i % 7], score=tuple(raw),
        p=tuple(p), p_ans_any=mass, nll_prefill=1.0,
    )  # fmt: skip


def canary(i: int, mass: float) -> CanaryRow:
    return CanaryRow(id=f"statement-{i:02d}", p_ans_any=mass, nll_prefill=0.1)


def answer(i: int, logodds: float, perplexity: float = 9.0) -> PersonaRow:
    said = Completion(prompt=f"q{i}", text="x y", tokens=(1, 2), dose=0, seed=i, ended=True)
    return PersonaRow(
        completion=said, logodds=logodds, perplexity=perplexity, tail_perplexity=9.0,
        kl_to_base=0.1, word_repetition=0.0, distinct_2=1.0,
    )  # fmt: skip


def state(
    name: str = "healed",
    *,
    seed: int = 0,
    shift: Sequence[float] = (0,) * 7,
    logodds: float = 0.0,
    mass: float = 0.95,
    perplexity: float = 9.0,
    noise: float = 0.0,
    n: int = 28,
    instrument: str = "forced_choice",
) -> Scores:
    """A state: vignettes that every state shares, moved by `shift`, with noise of its own."""
    common, own = np.random.default_rng(99), np.random.default_rng(seed)
    scores = common.normal(0, 1, (n, 7)) + np.array(shift) + own.normal(0, 1, (n, 7)) * noise
    traits = common.normal(0, 0.1, n) + logodds + own.normal(0, 1, n) * noise
    return Scores(
        state=name,
        instrument=instrument,
        vignettes=tuple(vignette(i, row, mass=mass) for i, row in enumerate(scores)),
        canary=tuple(canary(i, mass - 0.001 * (i % 3)) for i in range(n)),
        persona=tuple(answer(i, value, perplexity) for i, value in enumerate(traits)),
    )


def lowered(by: float) -> list[float]:
    return [-by if name == "authority" else 0.0 for name in FOUNDATIONS]


BASE = state("base")
MOVED = state(shift=lowered(1.4), logodds=0.3, mass=0.85, perplexity=12.0, seed=1, noise=0.05)


# ── selectivity ─────────────────────────────────────────────────────────────────────────────────


def test_a_shift_of_one_score_reads_six_sevenths_on_it_and_minus_one_seventh_elsewhere() -> None:
    before = np.array([3.0, -1.0, 0.5, 2.0, 0.0, 0.0, -7.0])
    after = before.copy()
    after[2] += 0.7
    change = clr(after) - clr(before)
    assert change == pytest.approx([-0.1, -0.1, 0.6, -0.1, -0.1, -0.1, -0.1])
    assert clr(before).sum() == pytest.approx(0)
    assert clr(np.log(np.exp(before) / np.exp(before).sum())) == pytest.approx(clr(before))


def test_the_intent_of_an_axis_is_its_target_with_its_sign() -> None:
    assert intent_of(AXIS) == {"authority": -1}
    assert intent_of(Axis(foundation="care", sign=1)) == {"care": 1}


def arms() -> tuple[list[VignetteRow], list[VignetteRow]]:
    """Authority −0.7 and −1.4 on two rows, Care +0.7 on the second."""
    flat = [vignette(0, [0.0] * 7), vignette(1, [0.0] * 7)]
    one, two = lowered(0.7), lowered(1.4)
    two[0] = 0.7
    return [vignette(0, one), vignette(1, two)], flat


def test_gated_selectivity_matches_a_hand_worked_example() -> None:
    pos, neg = arms()
    # Row 0, clr: authority −.6, the rest +.1. Row 1: sum −.7, mean −.1, so authority −1.3,
    # care +.8, the rest +.1. Means: authority −.95, care +.45, five others +.1.
    # on = .95, off = (.45 + 5·.1)/6 = .158333, coh = min(1, .72/.9) = .8.
    found = gated_selectivity(
        pos, neg, {"authority": -1}, mass_pos=0.72, mass_neg=0.9, mass_base=0.9
    )
    assert found.value == pytest.approx((0.95 - 0.1 * 0.95 / 6) * 0.64)
    # Without one row the other is left, and of two rows the jackknife's error is half of their
    # difference; t with one degree of freedom is 12.7062.
    reach = 12.7062 * (1.3 - 0.1 * 1.3 / 6 - 0.6 + 0.1 * 0.1) / 2 * 0.64
    assert found.high - found.value == pytest.approx(reach, rel=1e-4)
    assert found.value - found.low == pytest.approx(reach, rel=1e-4)
    assert found.n == 2
    both = gated_selectivity(
        pos, neg, {"authority": -1, "care": 1}, mass_pos=2, mass_neg=1, mass_base=0.9
    )
    assert both.value == pytest.approx((0.95 + 0.45) / 2 - 0.1 * 0.1)


def test_gated_selectivity_is_the_published_formula_and_its_interval_the_jackknife_of_it() -> None:
    random = np.random.default_rng(5)
    pos = [vignette(i, row) for i, row in enumerate(random.normal(0.2, 1, (20, 7)))]
    neg = [vignette(i, row) for i, row in enumerate(random.normal(0, 1, (20, 7)))]
    found = gated_selectivity(
        pos, neg, {"authority": -1, "care": 1}, mass_pos=0.8, mass_neg=0.7, mass_base=0.9
    )
    shift = np.array([clr(p.score) - clr(n.score) for p, n in zip(pos, neg, strict=True)])

    def published(rows: np.ndarray) -> float:
        delta = rows.mean(0)
        off = np.mean([abs(delta[i]) for i in (1, 2, 4, 5, 6)])
        return ((delta[0] - delta[3]) / 2 - 0.1 * off) * (0.7 / 0.9) ** 2

    without = [published(np.delete(shift, i, axis=0)) for i in range(20)]
    reach = 2.093024 * math.sqrt(19 * np.var(without))
    assert found.value == pytest.approx(published(shift))
    assert found.high - found.value == pytest.approx(reach, rel=1e-6)
    assert found.value - found.low == pytest.approx(reach, rel=1e-6)


def test_gated_selectivity_without_a_usable_answer_mass_is_unknown_with_the_reason() -> None:
    pos, neg = arms()
    intent = {"authority": -1}
    lost = gated_selectivity(pos, neg, intent, mass_pos=math.nan, mass_neg=1, mass_base=1)
    assert math.isnan(lost.value) and lost.reason == "the answer mass is not known"
    silent = gated_selectivity(pos, neg, intent, mass_pos=0, mass_neg=0, mass_base=0)
    assert "no mass on the answers" in silent.reason
    gone = gated_selectivity(pos, neg, intent, mass_pos=0, mass_neg=1, mass_base=1)
    assert (gone.value, gone.low, gone.high) == (0, 0, 0)


def test_flips_count_rows_whose_first_foundation_changes_as_intended() -> None:
    first = {name: np.eye(7)[i] for i, name in enumerate(FOUNDATIONS)}
    neg = [vignette(i, first[name]) for i, name in enumerate(["authority"] * 3 + ["care"])]
    pos = [
        vignette(i, first[name]) for i, name in enumerate(["care", "liberty", "authority", "care"])
    ]
    # Authority first: 3/4 before, 1/4 after.
    assert si_flips(pos, neg, {"authority": -1}).value == pytest.approx(0.5)
    assert si_flips(neg, pos, {"authority": -1}).value == pytest.approx(-0.5)
    # Care first: 1/4 before, 2/4 after; the mean over the two is (.5 + .25) / 2.
    assert si_flips(pos, neg, {"authority": -1, "care": 1}).value == pytest.approx(0.375)
    still = si_flips(pos, pos, {"authority": -1})
    assert still.value == 0 and still.low == -still.high < 0


def test_rows_that_are_not_finite_are_unknown_never_a_number() -> None:
    pos, neg = arms()
    broken = [pos[0], vignette(1, [math.nan] * 7)]
    gated = gated_selectivity(
        broken, neg, {"authority": -1}, mass_pos=math.nan, mass_neg=1, mass_base=1
    )
    for found in (gated, si_flips(broken, neg, {"authority": -1})):
        assert math.isnan(found.value) and "1 of 2 units are not finite" in found.reason


@pytest.mark.parametrize(
    ("pos", "neg", "message"),
    [
        ([], [], "Neither state has vignettes"),
        (arms()[0], arms()[1][:1], "different vignettes: 1 match, of 2 and 1. Measure both"),
        (arms()[0][:1] * 2, arms()[1], r"\('v0', 'other'\) twice among its vignettes"),
    ],
)
def test_arms_that_do_not_pair_are_refused(pos: list, neg: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        si_flips(pos, neg, {"authority": -1})
    with pytest.raises(UserError, match=message):
        gated_selectivity(pos, neg, {"authority": -1}, mass_pos=1, mass_neg=1, mass_base=1)


def test_an_intent_for_an_unknown_foundation_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"Unknown foundation 'autority'. Perhaps .*'authority'"):
        si_flips(*arms(), {"autority": -1})


def test_the_same_vignette_under_another_condition_is_another_unit() -> None:
    pos, neg = arms()
    both = [*pos, *(row.model_copy(update={"condition": "self"}) for row in pos)]
    flat = [*neg, *(row.model_copy(update={"condition": "self"}) for row in neg)]
    assert si_flips(both, flat, {"authority": -1}).n == 4


# ── two states ──────────────────────────────────────────────────────────────────────────────────


def test_a_state_against_itself_has_not_moved_in_any_reading() -> None:
    for instrument in ("forced_choice", "likelihood"):
        same = BASE.model_copy(update={"instrument": instrument})
        found = compare(same, same, AXIS)
        assert found.moved == ()
        assert found.surgical is None
        for name, reading in found.readings().items():
            if name == "coh_cost":
                assert "has not moved" in reading.reason
            elif name in ("top1", "si_flips"):
                # That no vignette flipped does not say that none would.
                assert reading.value == 0 and reading.low == -reading.high < 0
            else:
                assert (reading.value, reading.low, reading.high) == (0, 0, 0), name


def test_a_moved_state_reads_what_was_put_into_it() -> None:
    found = compare(MOVED, BASE, AXIS)
    assert (found.b, found.a, found.n) == ("healed", "base", 28)
    assert found.delta_clr["authority"].value == pytest.approx(-1.2, abs=0.05)
    assert found.delta_clr["care"].value == pytest.approx(0.2, abs=0.05)
    assert found.free_gain.value == pytest.approx(0.3, abs=0.05)
    assert found.gain.value == pytest.approx(-found.delta_nats["authority"].value)
    assert found.mass_change.value == pytest.approx(-0.10)
    assert found.change("fluency").value == pytest.approx(math.log(12 / 9))
    assert found.cost.value == pytest.approx(0.10 / found.gain.value)
    assert found.surgical is True
    assert {"delta_nats.authority", "delta_clr.authority", "persona_logodds"} <= set(found.moved)
    # on ≈ 1.2, off ≈ .2, coh = .85/.95.
    gated = found.changes["gated_selectivity"].value
    assert gated == pytest.approx(1.18 * (0.85 / 0.95) ** 2, abs=0.05)
    was, now = (
        [np.argmax(row.score) == AUTHORITY for row in scores.vignettes] for scores in (BASE, MOVED)
    )
    assert found.changes["si_flips"].value == pytest.approx(np.mean(was) - np.mean(now))
    social = [np.mean([row.p[6] for row in scores.vignettes]) for scores in (MOVED, BASE)]
    assert found.changes["not_wrong"].value == pytest.approx(social[0] - social[1])


def test_swapping_the_states_negates_every_change() -> None:
    there = compare(MOVED, BASE, AXIS, base=BASE).readings()
    back = compare(BASE, MOVED, AXIS, base=BASE).readings()
    for name, one in there.items():
        if name not in ("coh_cost", "gated_selectivity"):
            other = back[name]
            assert (one.value, one.low, one.high) == pytest.approx(
                (-other.value, -other.high, -other.low)
            ), name


def test_the_order_of_rows_changes_nothing() -> None:
    random = np.random.default_rng(3)

    def shuffled(scores: Scores) -> Scores:
        fields = {}
        for name in ("vignettes", "canary", "persona"):
            rows = getattr(scores, name)
            fields[name] = tuple(rows[i] for i in random.permutation(len(rows)))
        return scores.model_copy(update=fields)

    assert compare(shuffled(MOVED), shuffled(BASE), AXIS) == compare(MOVED, BASE, AXIS)


def test_a_comparison_survives_json() -> None:
    found = compare(MOVED.model_copy(update={"persona": ()}), BASE, AXIS)
    assert Comparison.model_validate_json(found.model_dump_json()).moved == found.moved


def test_a_comparison_agrees_with_the_summary_of_the_same_states() -> None:
    steered, base = (item.model_copy(update={"instrument": "likelihood"}) for item in (MOVED, BASE))
    found, told = compare(steered, base, AXIS), summarise(steered, base, AXIS)
    for name in FOUNDATIONS:
        assert found.delta_nats[name].value == pytest.approx(told.delta_nats[name].value)
    assert found.gain.value == pytest.approx(told.gain.value)
    assert found.mass_change.value == pytest.approx(told.mass_change.value)
    assert found.cost.value == pytest.approx(told.cost.value)
    assert found.surgical == told.surgical
    assert found.changes["top1"].value == pytest.approx(
        told.values["top1"].value - summarise(base, base, AXIS).values["top1"].value
    )


def test_coherence_is_the_base_s_answer_mass_where_the_instrument_has_answers() -> None:
    half = MOVED.model_copy(
        update={
            "vignettes": tuple(
                row.model_copy(update={"p_ans_any": 0.45}) for row in MOVED.vignettes
            )
        }
    )
    full = BASE.model_copy(
        update={
            "vignettes": tuple(row.model_copy(update={"p_ans_any": 0.9}) for row in BASE.vignettes)
        }
    )
    chosen = compare(half, full, AXIS).changes["gated_selectivity"]
    phrased = compare(
        *(item.model_copy(update={"instrument": "likelihood"}) for item in (half, full)), AXIS
    ).changes["gated_selectivity"]
    assert chosen.value / phrased.value == pytest.approx(0.25 / (0.849 / 0.949) ** 2, rel=1e-3)


@pytest.mark.parametrize(
    ("field", "what"),
    [("vignettes", "vignettes"), ("persona", "prompts"), ("canary", "canary statements")],
)
def test_units_that_differ_or_repeat_are_refused_and_missing_ones_are_unknown(
    field: str, what: str
) -> None:
    rows = getattr(BASE, field)
    fewer = BASE.model_copy(update={field: rows[:20]})
    with pytest.raises(
        UserError, match=rf"different {what}: 20 match, of 28 and 20\. Measure both states with"
    ):
        compare(MOVED, fewer, AXIS)
    twice = BASE.model_copy(update={field: (*rows[:-1], rows[0])})
    with pytest.raises(UserError, match=rf"twice among its {what}\. Measure each once"):
        compare(MOVED, twice, AXIS)
    found = compare(MOVED, BASE.model_copy(update={field: ()}), AXIS)
    lost = {name for name, reading in found.readings().items() if reading.reason}
    assert lost
    for name in lost:
        expected = f"no {what} were measured for a (base)"
        assert found.readings()[name] == Reading.unknown(expected) or name == "gated_selectivity"
        assert math.isnan(found.readings()[name].value)


@pytest.mark.filterwarnings("error")
def test_an_instrument_without_any_vignettes_warns_about_nothing() -> None:
    empty = BASE.model_copy(update={"vignettes": (), "instrument": "likelihood"})
    found = compare(empty, empty, AXIS)
    assert found.n == 0 and found.surgical is None
    assert found.changes["top1"].reason == "no vignettes were measured for b (base) and a (base)"
    assert found.gain.value == 0


def test_other_instruments_and_a_base_on_other_vignettes_are_refused() -> None:
    with pytest.raises(UserError, match="different instruments: forced_choice and likelihood"):
        compare(MOVED, BASE.model_copy(update={"instrument": "likelihood"}), AXIS)
    fewer = BASE.model_copy(update={"vignettes": BASE.vignettes[:21]})
    with pytest.raises(UserError, match="different vignettes: 21 match, of 28 and 21"):
        compare(MOVED, BASE, AXIS, base=fewer)


def test_a_broken_row_makes_its_readings_unknown_with_a_reason() -> None:
    rows = (vignette(0, [math.nan] * 7, mass=math.nan), *MOVED.vignettes[1:])
    found = compare(MOVED.model_copy(update={"vignettes": rows}), BASE, AXIS)
    for name, reading in found.readings().items():
        if name.split(".")[0] in ("delta_nats", "delta_clr", "top1", "not_wrong"):
            assert math.isnan(reading.value) and "1 of 28 units" in reading.reason, name
    assert found.free_gain.moved and not found.gain.moved
    base = BASE.model_copy(update={"vignettes": rows, "instrument": "likelihood"})
    whole = MOVED.model_copy(update={"instrument": "likelihood"})
    assert "not finite to centre on" in compare(whole, base, AXIS).changes["top1"].reason
    mute = tuple(answer(i, 0.0, math.inf) for i in range(28))
    found = compare(MOVED.model_copy(update={"persona": mute}), BASE, AXIS)
    assert "not finite" in found.change("fluency").reason


@pytest.mark.long
def test_paired_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    many = np.random.default_rng(7)
    before = many.normal(0, 1, (200_000, 7))
    after = before + lowered(0.7) + many.normal(0, 0.5, before.shape)
    p = [np.exp(x)[:, AUTHORITY] / np.exp(x).sum(1) for x in (before, after)]
    truths = {
        "delta_clr.authority": -0.6,
        "delta_clr.care": 0.1,
        "delta_nats.authority": math.log(p[1].mean() / p[0].mean()),
    }
    hits = dict.fromkeys(truths, 0)
    for trial in range(200):
        random = np.random.default_rng(trial)
        a = random.normal(0, 1, (60, 7))
        b = a + lowered(0.7) + random.normal(0, 0.5, a.shape)
        old, new = (
            BASE.model_copy(
                update={"vignettes": tuple(vignette(i, row) for i, row in enumerate(rows))}
            )
            for rows in (a, b)
        )
        found = compare(new, old, AXIS).readings()
        for name, truth in truths.items():
            hits[name] += found[name].low <= truth <= found[name].high
    assert all(0.89 <= count / 200 <= 0.985 for count in hits.values()), hits


# ── seeds ───────────────────────────────────────────────────────────────────────────────────────


def seeds() -> list[Comparison]:
    one = compare(MOVED, BASE, AXIS)
    return [
        put(one, gain=Reading(value=value, low=value, high=value, n=28))
        for value in (1.0, 2.0, 3.0)
    ]


def test_a_band_over_seeds_is_the_mean_and_its_t_interval() -> None:
    band = across_seeds(seeds())
    found = band.readings["persona_logodds"]
    # s = 1, t with 2 degrees of freedom = 4.3027, over √3.
    assert found.value == pytest.approx(2)
    assert found.high - 2 == 2 - found.low == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert found.n == band.seeds == band.surgical == 3
    assert "persona_logodds" not in band.moved
    assert "delta_clr.authority" in band.moved
    assert set(band.readings) == set(seeds()[0].readings())


def test_the_t_interval_over_few_seeds_covers_the_truth() -> None:
    random = np.random.default_rng(2)
    for count in (2, 4, 14):
        hits = 0
        for _ in range(400):
            values = [Reading(value=float(value)) for value in random.normal(0.5, 1, count)]
            found = compare_module.over_seeds(values)
            hits += found.low <= 0.5 <= found.high
        assert 0.92 <= hits / 400 <= 0.98, count


def test_one_seed_has_no_interval_and_a_lost_reading_is_lost_for_the_band() -> None:
    same = across_seeds([seeds()[0]] * 3).readings["delta_nats.care"]
    own = seeds()[0].delta_nats["care"]
    assert (same.low, same.high) == (own.low, own.high) and own.low < own.high
    alone = across_seeds(seeds()[:1])
    assert all("one seed" in reading.reason for reading in alone.readings.values())
    assert alone.moved == ()
    some = seeds()
    some[1] = put(some[1], cost=Reading.unknown("has not moved"))
    found = across_seeds(some).readings["coh_cost"]
    assert found.reason == "unknown in 1 of 3 seeds: has not moved"


def test_seeds_of_different_comparisons_are_refused() -> None:
    other = seeds()[0].model_copy(update={"b": "steered"})
    with pytest.raises(UserError, match="healed − base by forced_choice, steered − base"):
        across_seeds([*seeds(), other])
    with pytest.raises(UserError, match="given: none"):
        across_seeds([])


def test_seeds_and_units_together_cover_the_truth_and_units_alone_would_not() -> None:
    both, alone = 0, 0
    for trial in range(200):
        random = np.random.default_rng(trial)
        shared = random.normal(0, 1, 40)
        rows = [0.3 + random.normal(0, 0.2) + shared + random.normal(0, 0.2, 40) for _ in range(8)]
        found = combined(rows)
        both += found.low <= 0.3 <= found.high
        means = np.array([row.mean() for row in rows])
        reach = 2.3646 * means.std(ddof=1) / math.sqrt(8)
        alone += abs(means.mean() - 0.3) <= reach
    assert 0.9 <= both / 200 <= 0.985
    assert alone / 200 < 0.85


def test_a_difference_over_seeds_takes_any_statistic_and_is_seeded() -> None:
    rows = [np.array([[0.4, 0.1], [0.2, 0.2]]), np.array([[0.2, 0.1], [0.2, 0.1]])]
    found = combined(rows, log_of_means)
    # ln(.3/.15) = ln 2 in both seeds.
    assert found.value == pytest.approx(math.log(2))
    assert found.n == 2
    assert found == combined(rows, log_of_means)
    assert combined([np.array([1.0, 3.0]), np.array([5.0, 7.0])]).value == pytest.approx(4)


def test_seeds_that_cannot_be_combined_say_why() -> None:
    with pytest.raises(UserError, match=r"Seeds have \[3, 2\] units"):
        combined([np.ones(3), np.ones(2)])
    assert combined([]).reason == "nothing was measured"
    assert combined([np.ones(3)]).reason == "one seed has no interval over seeds"
    assert "1 of 2 seeds" in combined([np.ones(3), np.array([1, math.nan, 1])]).reason
