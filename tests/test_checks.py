"""The checks: one record per outcome, neighbours that are none, silence about the unknown."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import reports
import test_cli
import test_loop
from steerheal import store
from steerheal.checks import course, filtering, healing, moves, rules, steering
from steerheal.cli import main
from steerheal.config import HealSettings, RunConfig
from steerheal.line import with_option
from steerheal.measure import stats
from steerheal.measure.qualify import Qualification
from steerheal.personas import Axis
from steerheal.records import (
    Calibration,
    Completion,
    Control,
    DosePoint,
    Finding,
    Harvest,
    HealLog,
    HealStep,
    Judged,
    PersonaRow,
    Reading,
    RoundRecord,
    RunRecord,
    Scores,
    Summary,
    Sweep,
    Verdict,
    WalkStep,
)
from steerheal.report import page

import tiny

NAN = math.nan
AXIS = Axis(foundation="authority", sign=-1, off_target=("care", "fairness"))
BARRIER = HealSettings(barrier="kl_rev", tau=0.1)
CHECKS = {
    check.name: cast(rules.Check[Any], check)
    for check in (steering.CHECK, filtering.CHECK, healing.CHECK, course.CHECK)
}
METHOD = Path(__file__).parents[1] / "docs" / "method.md"


def reading(value: float, half: float = 0.03) -> Reading:
    return Reading(value=value, low=value - half, high=value + half, n=32)


def holding(check: str, evidence: rules.Evidence) -> set[str]:
    return {rule.name for rule in CHECKS[check].rules if rule.holds(evidence)}


# ── check 1 ─────────────────────────────────────────────────────────────────────────────────────


def point(dose: float, **changes: Any) -> DosePoint:
    """A dose that does nothing."""
    values: dict[str, Any] = {
        "delta_nats": {
            "authority": reading(0, 0.1), "care": reading(0, 0.1), "fairness": reading(0, 0.1)
        },
        "gain": reading(0), "coherence": 1.0, "perplexity": 7.0, "kl": 0.1 * dose,
    }  # fmt: skip
    nats = values.pop("delta_nats") | changes.pop("nats", {})
    return reports.dose_point(dose, nats=nats, **values | changes)


DOWN = {"authority": reading(-0.4, 0.1)}
SEES = Qualification(
    fit=True, instrument="likelihood", answer_mass=0.99, accuracy=reading(0.6), chance=0.15,
    saturation=0.1, resolution=0.1, reasons=(),
)  # fmt: skip
BLIND = SEES.model_copy(update={"fit": False, "reasons": ("top-1 0.15 is not above chance 0.15",)})


def base_summary() -> Summary:
    zero = reports.summary("base", 0.01, 0.98, kl=0.0)
    nats = {name: reading(0, 0) for name in zero.delta_nats}
    return reports.put(zero, delta_nats=nats, gain=reading(0, 0), perplexity=7.0)


def check1(
    *points: DosePoint, sees: Qualification = SEES, start: Summary | None = None
) -> steering.Steering:
    sweep = Sweep(points=points, base_perplexity=7.0)
    return steering.evidence(sweep, sees, AXIS, start or base_summary())


def idle(random: np.random.Generator, doses: int, n: int) -> steering.Steering:
    """A sweep in which nothing has an effect, read on n prompts and twice as many vignettes."""
    zero, act = random.normal(0, 0.1, n), random.normal(-2.5, 1.5, 2 * n)
    before = 1 / (1 + np.exp(-act - random.normal(0, 0.4, 2 * n)))
    points = []
    for dose in range(doses):
        after = 1 / (1 + np.exp(-act - random.normal(0, 0.4, 2 * n)))
        nats = stats.log_ratio(np.stack([after, before], axis=1))
        odds = stats.mean(random.normal(0, 0.1, n) - zero)
        points.append(point(dose + 1, nats={"authority": nats}, gain=odds))
    return check1(*points)


@pytest.mark.long
@pytest.mark.parametrize(("doses", "n"), [(1, 10), (2, 10), (2, 16), (5, 16)])
def test_with_no_effect_at_any_dose_steering_works_in_one_run_of_twenty(doses: int, n: int) -> None:
    random = np.random.default_rng(0)
    seen = [steering.CHECK.seen(idle(random, doses, n)).outcome for _ in range(1000)]
    assert seen.count("works") / 1000 <= 0.06


def test_a_dose_that_moves_alone_may_not_move_among_four() -> None:
    just = point(1, gain=reading(0.032))
    assert steering.CHECK.seen(check1(just)).outcome == "works"
    four = check1(point(0.25), point(0.5), point(0.75), just)
    assert steering.CHECK.seen(four).outcome == "lost in noise"
    assert "intervals hold at all 4 doses together" in steering.CHECK.seen(four).words


def unread() -> DosePoint:
    lost = Reading.unknown("not read")
    return point(1, nats=dict.fromkeys(("authority", "care", "fairness"), lost), gain=lost)


STEERING: dict[str, Callable[[], steering.Steering]] = {
    "works": lambda: check1(
        point(0.5), point(1, nats=DOWN, gain=reading(0.1), coherence=0.97, perplexity=10)
    ),
    "too weak": lambda: check1(point(0.5), point(1)),
    "too strong": lambda: check1(point(0.5, coherence=0.6), point(1, coherence=0.1)),
    "imprecise": lambda: check1(
        point(0.5), point(1, nats=DOWN | {"care": reading(-0.5, 0.1)}, coherence=0.97)
    ),
    "wrong sign": lambda: check1(
        point(0.5),
        point(1, nats={"authority": reading(0.23, 0.1)}, gain=reading(0.1)),
    ),
    "instrument cannot see it": lambda: check1(unread(), sees=BLIND),
    "lost in noise": lambda: check1(point(0.5), point(1, coherence=0.97, perplexity=10)),
}


def test_works_on_the_personas_own_axis_alone_says_that_the_foundation_did_not_move() -> None:
    found = steering.CHECK.seen(check1(point(1, gain=reading(0.1))))
    assert found.outcome == "works"
    assert "authority 0 [−0.1, 0.1] nats (not moved)" in found.words
    assert "no random vector was read at equal KL" in found.words


def test_a_foundation_that_moves_backwards_is_never_hidden_behind_the_log_odds() -> None:
    found = steering.CHECK.seen(STEERING["wrong sign"]())
    assert found.outcome == "wrong sign" and found.tone == "bad"
    assert "authority (less was meant)" in found.words
    # Two doses: the 98.75 % point of t with 31 degrees of freedom over the 97.5 % one is 1.153.
    assert "authority +0.23 [0.115, 0.345] nats, persona log-odds +0.1 [0.0654" in found.words


def test_a_reversed_axis_reads_the_same_move_the_other_way() -> None:
    sweep = Sweep(points=(point(1, nats={"authority": reading(0.4)}),), base_perplexity=7.0)
    up = AXIS.model_copy(update={"sign": 1})
    seen = [steering.evidence(sweep, SEES, axis, base_summary()) for axis in (AXIS, up)]
    assert [steering.CHECK.seen(item).outcome for item in seen] == ["wrong sign", "works"]


def test_log_odds_that_fall_are_a_wrong_sign_too() -> None:
    found = steering.CHECK.seen(check1(point(1, nats=DOWN, gain=reading(-0.1))))
    assert found.outcome == "wrong sign"
    assert "persona log-odds (more was meant)" in found.words


def test_one_reading_that_moves_both_ways_is_ambiguous() -> None:
    up = {"authority": reading(0.4, 0.1)}
    found = steering.CHECK.seen(check1(point(0.5, nats=DOWN), point(1, nats=up)))
    assert found.outcome == rules.AMBIGUOUS
    assert set(found.candidates) == {"works", "wrong sign"}
    assert "works: Dose 0.5" in found.words and "wrong sign: Dose 1" in found.words
    assert found.tone == "unknown"


def test_a_random_vector_that_moves_as_much_makes_it_imprecise() -> None:
    steered = point(1, nats=DOWN, gain=reading(0.1), kl=0.3)
    for logodds, outcome in ((0.11, "imprecise"), (0.05, "works")):
        random = point(
            1, control=True, nats={"authority": reading(0.4, 0.1)}, gain=reading(logodds)
        )
        found = steering.CHECK.seen(check1(steered, random))
        assert found.outcome == outcome
    assert "a random vector at equal KL moves less" in found.words


def test_a_lower_dose_without_its_own_random_vector_does_not_escape_it() -> None:
    random = point(1, control=True, gain=reading(0.2), kl=2.0)
    doses = [point(0.1, gain=reading(0.1)), point(1, gain=reading(0.1))]
    assert steering.CHECK.seen(check1(*doses, random)).outcome == "imprecise"
    far = random.model_copy(update={"dose": 3.0})
    assert steering.CHECK.seen(check1(*doses, far)).outcome == "works"
    near = point(3, control=True, gain=reading(0.2), kl=0.099 * steering.EQUAL_KL)
    assert steering.CHECK.seen(check1(*doses, near)).outcome == "imprecise"


def test_an_instrument_that_cannot_see_is_judged_first() -> None:
    good = STEERING["works"]().model_copy(update={"fit": False, "reasons": "at chance"})
    found = steering.CHECK.seen(good)
    assert found.outcome == "instrument cannot see it"
    assert "works" in found.candidates and "Also works: Dose 1" in found.words
    silent = STEERING["works"]().model_copy(update={"answer_mass": 0.3})
    assert "base answer mass 0.3 is below 0.5" in steering.CHECK.seen(silent).words


def test_later_rounds_are_read_from_their_own_start() -> None:
    start = base_summary()
    start = reports.put(start, gain=reading(0.1))
    evidence = check1(point(1, gain=reading(0.1)), start=start)
    assert evidence.doses[0].trait[moves.LOGODDS].value == 0
    assert "works" not in holding("check 1", evidence)


def test_garbled_text_is_no_coherent_dose_whatever_the_answer_mass() -> None:
    garbled = point(1, nats=DOWN, perplexity=7.0 * 4.1)
    assert steering.CHECK.seen(check1(garbled)).outcome == "too strong"


def test_one_steered_reading_is_a_sweep_of_one_dose() -> None:
    steered = reports.summary("steered", 0.11, 0.97)
    sweep = moves.sweep_of(steered, base_summary(), 0.75)
    (only,) = sweep.points
    assert (only.dose, only.n, only.summary.kl.value, sweep.base_perplexity) == (0.75, 32, 0.1, 7.0)
    assert only.summary == steered


# ── check 2 ─────────────────────────────────────────────────────────────────────────────────────


def said(text: str = "text", dose: float = 0.0) -> Completion:
    return Completion(prompt="p", text=text, tokens=(1,), dose=dose, seed=0, ended=True)


def persona_scores(state: str = "base", text: str = "I would help them.") -> Scores:
    rows = [
        PersonaRow(
            completion=said(text), logodds=0.0, perplexity=7, tail_perplexity=7, kl_to_base=0,
            word_repetition=0.02, distinct_2=0.95,
        )
        for _ in range(20)
    ]  # fmt: skip
    return Scores(
        state=state, instrument="likelihood", vignettes=(), canary=(), persona=tuple(rows)
    )


def judged(dose: float, kept: bool, tail: float, **changes: Any) -> Judged:
    reasons = changes.pop("reasons", () if kept else ("incoherent",))
    numbers: dict[str, Any] = {
        "word_repetition": 0.03, "char_repetition": 0.1, "words": 30, "distinct_2": 0.93,
        "kl": 0.3 * dose, "logodds": 0.1 * dose,
    }  # fmt: skip
    verdict = Verdict(kept=kept, reasons=reasons, tail_perplexity=tail, **{**numbers, **changes})
    return Judged(completion=said(dose=dose), verdict=verdict, batch="walk-0")


def drawn(
    survival: tuple[float, float], tails: tuple[float, float] = (8, 20), **changes: Any
) -> Harvest:
    """48 completions at the doses 0.5 and 1, so many of them kept."""
    outcome = changes.pop("outcome", "fed")
    rows = [
        judged(dose, place < 24 * share, tail, **changes)
        for dose, share, tail in zip((0.5, 1.0), survival, tails, strict=True)
        for place in range(24)
    ]
    kept = sum(row.verdict.kept for row in rows)
    return Harvest(
        outcome=outcome, multiplier=1.0, walk=(WalkStep(multiplier=1.0, drawn=48, kept=kept),),
        judged=tuple(rows), perplexity_limit=28.0,
    )  # fmt: skip


def check2(found: Harvest, sweep: Sweep | None = None) -> filtering.Filtering:
    return filtering.evidence(found, persona_scores(), sweep)


def test_check_2_says_what_fresh_unsteered_text_loses_and_what_the_texts_cannot_promise() -> None:
    limits = Calibration(
        texts=32, classes={}, medians={}, spreads={}, limits={}, dropped={"together": 0.1},
        fresh={"together": 0.2}, expected={"incoherent": 1 / 33, "compresses": 1 / 33},
        too_few={"compresses": 1 / 33},
    )  # fmt: skip
    found = filtering.CHECK.seen(
        check2(drawn((0.92, 0.5)).model_copy(update={"calibration": limits}))
    )
    assert "of the base's own fresh text 20 % is dropped" in found.words
    assert "32 calibration texts cannot set a rule below 3.0 %, and 1 were to" in found.words
    assert found.numbers["fresh_drop"] == 0.2
    assert "fresh text" not in filtering.CHECK.seen(check2(drawn((0.92, 0.5)))).words


NARRATING = ("narrates",)
FILTERING: dict[str, Callable[[], filtering.Filtering]] = {
    "separates": lambda: check2(drawn((0.92, 0.5))),
    "inert": lambda: check2(drawn((1, 1), (8, 8.1))),
    "starved": lambda: check2(drawn((0.2, 0.0), (8, 8), outcome="starved")),
    "keeps base": lambda: check2(drawn((0.5, 0.3), kl=0.04)),
    "leaks loops": lambda: check2(drawn((0.5, 0.3), word_repetition=0.2)),
    "narration dominates": lambda: check2(
        drawn((0.5, 0.3)).model_copy(
            update={
                "judged": tuple(
                    judged(dose, kept, 8, reasons=() if kept else NARRATING)
                    for dose, share in ((0.5, 12), (1.0, 7))
                    for kept in [True] * share + [False] * (24 - share)
                )
            }
        )
    ),
}  # fmt: skip


def test_without_a_kl_the_sweep_says_which_dose_teaches_nothing() -> None:
    sweep = Sweep(points=(point(2.0, gain=reading(0.1)),), base_perplexity=7.0)
    low = drawn((0.9, 0.4), kl=NAN)
    assert filtering.CHECK.seen(check2(low)).outcome == "separates"
    assert filtering.CHECK.seen(check2(low, sweep)).outcome == "keeps base"
    read = drawn((0.9, 0.4), kl=0.3)
    assert filtering.CHECK.seen(check2(read, sweep)).outcome == "separates"


def test_a_filter_that_separates_and_leaks_says_both() -> None:
    found = filtering.CHECK.seen(check2(drawn((0.92, 0.5), distinct_2=0.8)))
    assert found.outcome == "leaks loops"
    assert set(found.candidates) == {"leaks loops", "separates"}
    assert "Also separates: The filter follows the dose" in found.words


def test_one_dose_has_no_course() -> None:
    one = drawn((0.9, 0.9))
    rows = tuple(row for row in one.judged if row.completion.dose == 1.0)
    evidence = check2(one.model_copy(update={"judged": rows}))
    assert math.isnan(evidence.drop)
    assert filtering.CHECK.seen(evidence).outcome == rules.AMBIGUOUS


def test_an_empty_harvest_is_readable() -> None:
    none = drawn((0, 0), outcome="starved").model_copy(update={"judged": (), "walk": ()})
    assert filtering.CHECK.seen(check2(none)).outcome == "starved"


# ── check 3 ─────────────────────────────────────────────────────────────────────────────────────


def heal_log(
    ces: tuple[float, ...] = (2.0, 1.6),
    held: tuple[float, ...] = (2.1, 1.8, 1.75),
    divergence: float = 0.3,
    pressure: float = NAN,
    tau: float = 0.1,
    **changes: Any,
) -> HealLog:
    """Four steps per epoch."""
    steps = [
        HealStep(
            step=4 * epoch + place, epoch=epoch, ce=ce, divergence=divergence,
            barrier=max(0.0, divergence - tau) if divergence == divergence else 0.0,
            lr=3e-4, gradient=1.0, tokens=300, pressure=pressure,
        )
        for epoch, ce in enumerate(ces)
        for place in range(4)
    ]  # fmt: skip
    values: dict[str, Any] = {
        "steps": tuple(steps), "held_out": held, "trained_on": 50, "held_out_completions": 6,
        "lam": 0.3, "outcome": "trained",
    }  # fmt: skip
    return HealLog(**{**values, **changes})


def check3(
    *,
    retain: Reading | None = None,
    recovered: Reading | None = None,
    coherence: float = 0.995,
    mass: Reading | None = None,
    steered: float = 0.11,
    target: Reading | None = None,
    narration: tuple[float, float] = (0.0, 0.0),
    settings: HealSettings | None = None,
    log: HealLog | None = None,
    net: Reading | None = None,
) -> healing.Healing:
    healed = reports.summary("healed", 0.08, 0.98)
    healed = reports.put(
        healed,
        coherence=coherence,
        perplexity=8.0,
        mass_change=mass or reading(0, 0.01),
        delta_nats=healed.delta_nats | {"authority": target or reading(-0.3, 0.1)},
    )
    record = reports.folded(0).model_copy(
        update={
            "steered": reports.summary("steered", steered, 0.7),
            "healed": healed,
            "retain": retain or reading(0.7, 0.2),
            "recovered": recovered or reading(0.95, 0.1),
            "heal": log or heal_log(),
        }
    )
    if net is not None:
        read = reports.summary("control", 0.05, 0.98)
        control = Control(texts=64, reused=60, unfiltered=0, read=read, retain=net)
        record = record.model_copy(update={"control": control})
    return healing.evidence(
        record, base_summary(), settings or BARRIER, AXIS, base=base_summary(),
        narration=narration,
    )  # fmt: skip


LITTLE, HALF = reading(0.05, 0.2), reading(0.35, 0.1)
HEALING: dict[str, Callable[[], healing.Healing]] = {
    "healed": check3,
    "undone": lambda: check3(retain=LITTLE),
    "training alone": lambda: check3(net=LITTLE),
    "over-regularised": lambda: check3(
        retain=HALF, log=heal_log(ces=(2.0, 1.99), pressure=4.0)
    ),
    "under-regularised": lambda: check3(coherence=0.93, mass=reading(-0.07, 0.02)),
    "barrier never fired": lambda: check3(retain=HALF, log=heal_log(divergence=0.08)),
    "overfit": lambda: check3(retain=HALF, log=heal_log(held=(2.1, 1.8, 1.9))),
    "rejected": lambda: check3(
        retain=HALF,
        log=heal_log(ces=(2.5, 14.0), outcome="rejected", reason="step 5 was not finite"),
    ),
    "unlearned": lambda: check3(
        retain=HALF, log=heal_log(ces=(2.0, 2.2), held=(2.1, 2.3, 2.15), pressure=0.1)
    ),
    "nothing to learn": lambda: check3(
        retain=HALF, log=heal_log(ces=(2.0, 1.99), held=(2.0, 2.0, 1.99), pressure=0.1)
    ),
    "narrates": lambda: check3(
        retain=HALF, target=reading(0.05, 0.1), narration=(0.5, 0.1)
    ),
}  # fmt: skip


def test_only_the_trait_beyond_the_unsteered_control_is_retained() -> None:
    found = healing.CHECK.seen(check3(net=reading(0.6, 0.1)))
    assert found.outcome == "healed"
    said = "retain 0.6 [0.5, 0.7] net of the unsteered control (0.7 [0.5, 0.9] without it)"
    assert said in found.words
    assert healing.CHECK.seen(check3(net=HALF)).outcome == rules.AMBIGUOUS
    gone = healing.CHECK.seen(check3(retain=LITTLE, net=LITTLE))
    assert gone.outcome == "undone"


def test_without_a_pressure_d_pinned_at_tau_shows_the_barrier() -> None:
    pinned = heal_log(ces=(2.0, 1.99), divergence=0.11)
    assert healing.CHECK.seen(check3(retain=LITTLE, log=pinned)).outcome == "over-regularised"
    far = heal_log(ces=(2.0, 1.99), divergence=0.2)
    assert healing.CHECK.seen(check3(retain=LITTLE, log=far)).outcome == "undone"


def test_a_barrier_that_holds_d_at_tau_is_seen_though_it_pulls_back_little() -> None:
    held = (2.0, 2.0, 1.99)
    # Above τ in two steps of five, where its gradient is the larger one by little.
    log = heal_log(ces=(2.0, 1.99), held=held, divergence=0.09, pressure=0.0)
    fires = [
        s.model_copy(update={"divergence": 0.11, "barrier": 0.01, "pressure": 1.2})
        if s.step % 5 < 2 else s
        for s in log.steps
    ]  # fmt: skip
    log = log.model_copy(update={"steps": tuple(fires)})
    assert healing.CHECK.seen(check3(retain=HALF, log=log)).outcome == "over-regularised"
    # With no τ, D is held at 0.
    flat = heal_log(ces=(2.0, 2.0), held=held, divergence=0.001, tau=0.0, pressure=0.9)
    none = BARRIER.model_copy(update={"tau": 0.0})
    found = healing.CHECK.seen(check3(retain=HALF, log=flat, settings=none))
    assert found.outcome == "over-regularised"
    far = heal_log(ces=(2.0, 2.0), held=held, divergence=0.3, tau=0.0, pressure=0.9)
    found = healing.CHECK.seen(check3(retain=HALF, log=far, settings=none))
    assert found.outcome == "nothing to learn"


def test_a_trait_that_steering_did_not_raise_cannot_be_healed() -> None:
    evidence = check3(steered=-0.1)
    assert not holding("check 3", evidence) & {"healed", "undone", "under-regularised"}
    assert "steering did not raise the trait" in healing.CHECK.seen(evidence).words


def test_a_heal_without_a_barrier_has_none_to_fire() -> None:
    log = heal_log(divergence=NAN, lam=0.0)
    found = healing.CHECK.seen(check3(settings=HealSettings(barrier="none"), log=log))
    assert (found.outcome, found.candidates) == ("healed", ())
    flat = heal_log(ces=(2.0, 2.0), held=(2.0, 2.0, 2.0), divergence=NAN, lam=0.0)
    none = check3(settings=HealSettings(barrier="none"), log=flat, retain=LITTLE)
    assert healing.CHECK.seen(none).outcome == "nothing to learn"


def test_a_healed_round_says_that_the_barrier_had_no_part_in_it() -> None:
    found = healing.CHECK.seen(check3(log=heal_log(divergence=0.08)))
    assert found.outcome == "healed"
    assert "Also barrier never fired: D never reached τ: at most 0.08 against 0.1" in found.words


def test_a_healed_round_with_the_foundation_backwards_is_not_green() -> None:
    found = healing.CHECK.seen(check3(target=reading(0.33, 0.1)))
    assert found.outcome == "healed" and found.tone == "unknown"
    assert "But authority moved the wrong way, +0.33 [0.23, 0.43] nats where less" in found.words


def test_a_good_result_with_a_cross_entropy_that_never_fell_is_ambiguous() -> None:
    found = healing.CHECK.seen(check3(log=heal_log(ces=(2.0, 1.99), pressure=4.0)))
    assert found.outcome == rules.AMBIGUOUS
    assert set(found.candidates) == {"healed", "over-regularised"}


def test_nothing_lost_is_nothing_to_recover() -> None:
    unknown = Reading.unknown("steering lost no answer mass beyond its interval")
    assert healing.CHECK.seen(check3(retain=LITTLE, recovered=unknown)).outcome == "undone"
    gone = check3(retain=LITTLE, recovered=unknown, coherence=0.9)
    assert healing.CHECK.seen(gone).outcome == rules.AMBIGUOUS


@pytest.mark.parametrize(
    ("ces", "reason"),
    [
        ((2.0, NAN), "step 5 of 8 was not finite"),
        ((2.5, 14.0), "training diverged: CE 2.50 → 14.00 nats/token; learning rate 1 is too high"),
    ],
)
def test_a_rejected_heal_is_its_own_outcome_with_its_reason(
    ces: tuple[float, float], reason: str
) -> None:
    log = heal_log(ces=ces, outcome="rejected", reason=reason)
    record = reports.folded(0).model_copy(
        update={"healed": None, "retain": None, "recovered": None, "heal": log}
    )
    evidence = healing.evidence(record, base_summary(), BARRIER, AXIS, base=base_summary())
    found = healing.CHECK.seen(evidence)
    assert found.outcome == "rejected"
    assert reason in found.words and "CE fell" not in found.words
    assert "--heal.lr" in found.advice


def test_a_single_epoch_is_read_by_its_quarters() -> None:
    log = heal_log(ces=(2.0,))
    falling = [step.model_copy(update={"ce": 2.0 - 0.1 * step.step}) for step in log.steps]
    evidence = check3(log=log.model_copy(update={"steps": tuple(falling)}))
    assert evidence.ce_fall == pytest.approx(0.3)


def test_narration_is_counted_in_free_answers() -> None:
    persona = tiny.persona()
    assert healing.narration(persona_scores(), persona) == 0
    loud = persona_scores(text="As someone who loves all people, I would help.")
    assert healing.narration(loud, persona) == 1


# ── loop ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("outcome", ["undone", "under-regularised"])
def test_advice_speaks_of_a_barrier_only_where_there_is_one(outcome: str) -> None:
    evidence = HEALING[outcome]()
    for barrier in (True, False):
        found = healing.CHECK.seen(evidence.model_copy(update={"barrier": barrier}))
        assert found.outcome == outcome
        assert ("--heal.lam" in found.advice) == barrier
        assert "--dose.coherence" in found.advice


def healed_round(number: int, trait: float, **changes: Any) -> RoundRecord:
    row = reports.folded(number)
    healed = reports.summary("healed", 0.01 + trait, 0.98)
    healed = healed.model_copy(
        update={
            "coherence": changes.pop("coherence", 0.99),
            "perplexity": 8.0,
            "delta_nats": {"authority": changes.pop("target", reading(-0.3, 0.1))},
        }
    )
    distinct, loops = changes.pop("kept_text", (0.9, 0.0))
    kept = Finding(
        check="check 2", outcome="separates", words="", advice="",
        numbers={"kept_distinct_2": distinct, "kept_loops": loops},
    )  # fmt: skip
    values = {"direction_cosine": 0.9, "kl_cumulative": 0.2 * (number + 1), **changes}
    return row.model_copy(update={"healed": healed, "findings": (kept,), **values})


def loop_of(*rounds: RoundRecord, settings: HealSettings | None = None) -> course.Course:
    found = course.evidence(rounds, settings or BARRIER, AXIS, base_summary())
    assert found is not None
    return found


LEASH = HealSettings(barrier="kl_rev", reference="base")
COURSE: dict[str, Callable[[], course.Course]] = {
    "compounding": lambda: loop_of(healed_round(0, 0.1), healed_round(1, 0.2)),
    "saturated": lambda: loop_of(healed_round(0, 0.2), healed_round(1, 0.2, kl_cumulative=1.8)),
    "collapse": lambda: loop_of(
        healed_round(0, 0.2), healed_round(1, 0.2, coherence=0.9, kept_text=(0.75, 0.0))
    ),
    "direction wander": lambda: loop_of(
        healed_round(0, 0.2), healed_round(1, 0.2, direction_cosine=0.4)
    ),
    "history erasure": lambda: loop_of(
        healed_round(0, 0.2), healed_round(1, 0.1), settings=LEASH
    ),
}  # fmt: skip


def test_fewer_than_two_healed_rounds_say_nothing_yet() -> None:
    args = (BARRIER, AXIS, base_summary())
    assert course.evidence([], *args) is None
    assert course.evidence([healed_round(0, 0.1)], *args) is None
    assert course.evidence([healed_round(0, 0.1), reports.starved(1)], *args) is None


def test_growth_past_the_published_line_is_what_healing_should_buy() -> None:
    past = loop_of(healed_round(0, 0.1), healed_round(1, 0.2, kl_cumulative=1.9))
    found = course.CHECK.seen(past)
    assert found.outcome == "compounding" and found.tone == "good"
    assert "KL spent 1.9 nats/token, past the 1.7" in found.words


def test_a_student_farther_from_the_base_than_its_rounds_add_up_to_has_spent_the_larger() -> None:
    far = healed_round(1, 0.2, kl_cumulative=0.8)
    assert far.healed is not None
    direct = reports.put(far.healed, kl=Reading(value=1.9, low=1.8, high=2.0, n=9))
    found = course.CHECK.seen(
        loop_of(healed_round(0, 0.2), far.model_copy(update={"healed": direct}))
    )
    assert found.outcome == "saturated"
    assert "KL spent 1.9 nats/token" in found.words
    assert math.isnan(
        healed_round(0, 0.1).model_copy(update={"healed": None, "kl_cumulative": math.nan}).kl_spent
    )


def test_growth_along_another_direction_names_the_wander_first() -> None:
    found = course.CHECK.seen(
        loop_of(healed_round(0, 0.1), healed_round(1, 0.2, direction_cosine=0.3))
    )
    assert found.outcome == "direction wander" and "Also compounding" in found.words


def test_a_trait_washed_out_without_a_leash_is_no_erasure() -> None:
    free = loop_of(healed_round(0, 0.2), healed_round(1, 0.1))
    assert course.CHECK.seen(free).outcome == rules.AMBIGUOUS


def test_compounding_with_the_foundation_backwards_is_not_green() -> None:
    found = course.CHECK.seen(
        loop_of(healed_round(0, 0.1), healed_round(1, 0.2, target=reading(0.3, 0.1)))
    )
    assert found.outcome == "compounding" and found.tone == "unknown"
    assert "But authority moved the wrong way" in found.words


# ── every rule ──────────────────────────────────────────────────────────────────────────────────

CASES: dict[str, dict[str, Callable[[], Any]]] = {
    "check 1": dict(STEERING), "check 2": dict(FILTERING), "check 3": dict(HEALING),
    "loop": dict(COURSE),
}  # fmt: skip
EVERY = [(check, name) for check, cases in CASES.items() for name in cases]


def test_no_rule_lacks_a_case_and_priorities_name_rules() -> None:
    for name, check in CHECKS.items():
        names = [rule.name for rule in check.rules]
        assert sorted(names) == sorted(CASES[name])
        for rule in check.rules:
            assert set(rule.over) <= set(names) - {rule.name}
            assert not any(
                rule.name in other.over for other in check.rules if other.name in rule.over
            )


@pytest.mark.parametrize(("check", "name"), EVERY)
def test_every_outcome_has_a_record_that_shows_it_and_nothing_else(check: str, name: str) -> None:
    found = CHECKS[check].seen(CASES[check][name]())
    assert (found.check, found.outcome, found.candidates) == (check, name, ())
    assert re.search(r"\d", found.words), found.words
    assert "{" not in found.words + found.advice
    assert not re.search(r"\bnan\b", found.words.lower())
    assert found.words.rstrip().endswith(".") and found.advice.endswith(".")


@pytest.mark.parametrize(("check", "name"), EVERY)
def test_advice_names_settings_that_exist(check: str, name: str) -> None:
    advice = CHECKS[check].seen(CASES[check][name]()).advice
    for option in re.findall(r"--([a-z][a-z.-]*[a-z])", advice):
        kind: Any = RunConfig
        for part in option.replace("-", "_").split("."):
            assert part in kind.model_fields, option
            kind = kind.model_fields[part].annotation


@pytest.mark.parametrize(("check", "name"), EVERY)
def test_a_finding_survives_json(check: str, name: str) -> None:
    found = CHECKS[check].seen(CASES[check][name]())
    again = Finding.model_validate_json(found.model_dump_json())
    assert again.model_dump_json() == found.model_dump_json()


def gone(value: Any) -> Any:
    """The same value with every number of it unknown."""
    if isinstance(value, Reading):
        return Reading.unknown("lost")
    if isinstance(value, float):
        return NAN
    if isinstance(value, moves.Move):
        return value.model_copy(update={name: gone(item) for name, item in value})
    if isinstance(value, dict):
        return {name: gone(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(gone(item) for item in value)
    return value


@pytest.mark.parametrize(("check", "name"), EVERY)
def test_nothing_is_concluded_from_what_nobody_read(check: str, name: str) -> None:
    evidence = CASES[check][name]()
    blank = evidence.model_copy(update={field: gone(value) for field, value in evidence})
    held = holding(check, blank)
    # Said by the qualification, the harvest and the heal themselves, not by a number.
    assert held <= ({name} & {"instrument cannot see it", "starved", "rejected"})
    assert not re.search(r"\bnan\b", CHECKS[check].seen(blank).words.lower())


FALLBACKS = {"kept_kl", "pressure", "recovered"}
"""Numbers that another one stands in for when they are unknown."""


@pytest.mark.parametrize(("check", "name"), EVERY)
def test_a_number_that_becomes_unknown_adds_no_outcome(check: str, name: str) -> None:
    evidence = CASES[check][name]()
    before = holding(check, evidence)
    for field, value in evidence:
        if field in FALLBACKS or isinstance(value, bool | str | tuple | int):
            continue
        less = evidence.model_copy(update={field: gone(value)})
        assert holding(check, less) <= before, field


NEIGHBOURS: list[tuple[str, str, Callable[[], Any]]] = [
    ("check 1", "works", lambda: check1(point(1, nats={"authority": reading(-0.4, 0.41)}))),
    ("check 1", "works", lambda: check1(point(1, nats=DOWN, coherence=0.949))),
    ("check 1", "too weak", lambda: check1(point(1, coherence=0.989))),
    ("check 1", "too weak", lambda: check1(point(1, perplexity=7.8))),
    ("check 1", "too weak", lambda: check1(point(1, gain=reading(0.02)))),
    ("check 1", "too strong", lambda: check1(point(0.5, coherence=0.951), point(1, coherence=0.1))),
    ("check 1", "imprecise", lambda: check1(point(1, nats=DOWN | {"care": reading(0.39, 0.1)}))),
    ("check 1", "wrong sign", lambda: check1(point(1, nats={"authority": reading(0.4, 0.41)}))),
    ("check 1", "wrong sign", lambda: check1(
        point(0.5, nats=DOWN), point(1, nats={"authority": reading(0.4, 0.1)}, coherence=0.9)
    )),
    ("check 1", "lost in noise", lambda: check1(point(1, coherence=0.97, nats=DOWN))),
    ("check 1", "instrument cannot see it", lambda: check1(
        point(1), sees=SEES.model_copy(update={"answer_mass": 0.51})
    )),
    ("check 2", "separates", lambda: check2(drawn((0.92, 0.85)))),
    ("check 2", "separates", lambda: check2(drawn((0.92, 0.5), (8, 8.7)))),
    ("check 2", "inert", lambda: check2(drawn((1, 0.87)))),
    ("check 2", "starved", lambda: check2(drawn((0.2, 0.0)))),
    ("check 2", "keeps base", lambda: check2(drawn((0.5, 0.3), kl=0.06))),
    ("check 2", "leaks loops", lambda: check2(drawn((0.5, 0.3), word_repetition=0.11))),
    ("check 2", "narration dominates", lambda: check2(
        drawn((0.9, 0.8)).model_copy(
            update={"judged": tuple(
                judged(dose, kept, 8, reasons=() if kept else NARRATING)
                for dose in (0.5, 1.0) for kept in [True] * 19 + [False] * 5
            )}
        )
    )),
    ("check 3", "healed", lambda: check3(retain=reading(0.49))),
    ("check 3", "healed", lambda: check3(coherence=0.989)),
    ("check 3", "undone", lambda: check3(retain=reading(0.21))),
    ("check 3", "undone", lambda: check3(retain=LITTLE, recovered=reading(0.4))),
    ("check 3", "training alone", lambda: check3(net=reading(0.21))),
    ("check 3", "training alone", lambda: check3(retain=reading(0.49), net=LITTLE)),
    ("check 3", "over-regularised", lambda: check3(log=heal_log(ces=(2.0, 1.97), pressure=4.0))),
    ("check 3", "over-regularised", lambda: check3(log=heal_log(ces=(2.0, 1.99), pressure=2.9))),
    ("check 3", "under-regularised", lambda: check3(coherence=0.97, mass=reading(-0.03, 0.04))),
    ("check 3", "barrier never fired", lambda: check3(log=heal_log(divergence=0.101))),
    ("check 3", "overfit", lambda: check3(log=heal_log(held=(2.1, 1.8, 1.81)))),
    ("check 3", "nothing to learn", lambda: check3(
        log=heal_log(ces=(2.0, 1.99), held=(2.0, 1.97), pressure=0.1)
    )),
    ("check 3", "rejected", lambda: check3(log=heal_log(reason="it diverged"))),
    ("check 3", "unlearned", lambda: check3(log=heal_log(ces=(2.0, 2.2), held=(2.1, 2.11)))),
    ("check 3", "unlearned", lambda: check3(log=heal_log(ces=(2.0, 2.01), held=(2.1, 2.3)))),
    ("check 3", "narrates", lambda: check3(target=reading(0.05, 0.1), narration=(0.29, 0.1))),
    ("check 3", "narrates", lambda: check3(target=reading(-0.3, 0.1), narration=(0.5, 0.1))),
    ("loop", "compounding", lambda: loop_of(healed_round(0, 0.1), healed_round(1, 0.125))),
    ("loop", "compounding", lambda: loop_of(
        healed_round(0, 0.1), healed_round(1, 0.2, coherence=0.94)
    )),
    ("loop", "saturated", lambda: loop_of(
        healed_round(0, 0.2), healed_round(1, 0.2, kl_cumulative=1.6)
    )),
    ("loop", "collapse", lambda: loop_of(
        healed_round(0, 0.2), healed_round(1, 0.2, coherence=0.9, kept_text=(0.85, 0.05))
    )),
    ("loop", "direction wander", lambda: loop_of(
        healed_round(0, 0.2), healed_round(1, 0.2, direction_cosine=0.51)
    )),
    ("loop", "history erasure", lambda: loop_of(
        healed_round(0, 0.2), healed_round(1, 0.18), settings=LEASH
    )),
]  # fmt: skip


@pytest.mark.parametrize(("check", "name", "make"), NEIGHBOURS)
def test_just_beside_the_line_it_does_not_hold(
    check: str, name: str, make: Callable[[], Any]
) -> None:
    assert name not in holding(check, make())


def test_every_rule_has_a_neighbour() -> None:
    assert {(check, name) for check, name, _ in NEIGHBOURS} == set(EVERY)


def test_the_documentation_has_the_same_outcomes() -> None:
    section = METHOD.read_text(encoding="utf-8").split("## Checks")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (check \d|loop) \| ([^|]+) \|", section, re.MULTILINE)
    assert sorted((check, name.strip()) for check, name in rows) == sorted(EVERY)


# ── a run ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("straight")
    test_loop.start(runs)
    return runs / "run"


@pytest.mark.slow
def test_a_run_notes_every_check_and_keeps_it(straight: Path) -> None:
    record = store.read_run(straight)
    seen = [[finding.check for finding in row.findings] for row in record.rounds]
    assert seen == [["check 1", "check 2", "check 3"], ["check 1", "check 2", "check 3", "loop"]]
    text = page.write_report(straight).read_text(encoding="utf-8")
    for finding in record.rounds[1].findings:
        assert f">{finding.check}</b>" in text and finding.outcome in text


def assert_ended(stopped: RunRecord, run: Path, check: str) -> None:
    """The run stopped after a check of the first round, and its record and page say so."""
    assert stopped.status == "finished"
    (only,) = stopped.rounds
    last = only.findings[-1]
    assert last.check == check
    assert stopped.outcome == f"ended after {check} of round 1, as asked: {last.outcome}"
    assert (only.outcome, only.healed, only.heal, stopped.best) == ("stopped", None, None, None)
    text = page.write_report(run).read_text(encoding="utf-8")
    assert last.outcome in text and "Round 1 ended after a check, as asked" in text
    assert not (run / "round-01" / "heal.json").exists()


@pytest.mark.slow
def test_a_run_ends_after_each_check_and_goes_on_from_there(straight: Path, tmp_path: Path) -> None:
    for until, check in (("check1", "check 1"), ("check2", "check 2")):
        stopped = test_loop.start(tmp_path, until=until)
        assert_ended(stopped, tmp_path / "run", check)
    made = len(stopped.stages)
    went_on = test_loop.start(tmp_path)
    assert all(mark.reused for mark in went_on.stages[:made])
    assert [row.outcome for row in went_on.rounds] == ["folded", "folded"]
    once, again = test_loop.timeless(straight), test_loop.timeless(tmp_path / "run")
    assert once["record"] == again["record"]


@pytest.mark.slow
def test_without_a_sweep_check_1_ends_a_run_too(straight: Path) -> None:
    stopped = test_loop.start(straight.parent, "unswept", until="check1", check={"doses": ()})
    assert_ended(stopped, straight.parent / "unswept", "check 1")


@pytest.mark.slow
def test_the_command_line_ends_after_a_check_and_resume_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, run = tiny.saved(tmp_path / "model"), tmp_path / "one"
    options = [part.format(model=model) for part in test_cli.OPTIONS]
    options[options.index("--device")] = "--model.device"
    line = ["run", "love", "--runs", str(tmp_path), "--name", "one", *options]
    main([*line, "--until", "check1"])
    said = capsys.readouterr()
    assert "Round 1 ended after a check, as asked" in said.out
    assert said.err.count("check 1 ·") == 2
    assert "--until check1" in store.read_run(run).command
    main(["run", "--resume", str(run)])
    record = store.read_run(run)
    assert record.rounds[0].outcome == "folded" and "--until" not in record.command
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*line, "--until", "check2"])
    assert stop.value.code == 2
    assert "went further than --until check2" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("line", "until", "expected"),
    [
        ("steerheal run love --until check1 --seed 1", None, "steerheal run love --seed 1"),
        ("steerheal run love --until=check1", "check2", "steerheal run love --until check2"),
        ("steerheal run 'a b'", "check1", "steerheal run 'a b' --until check1"),
    ],
)
def test_a_recorded_line_ends_where_the_run_does(
    line: str, until: str | None, expected: str
) -> None:
    assert with_option(line, "--until", until) == expected


@pytest.mark.slow
def test_findings_are_escaped_and_their_tone_is_also_text(tmp_path: Path) -> None:
    finding = Finding(
        check="check 1", outcome="works", words=reports.HOSTILE, advice="<b>do</b>",
        tone="good", candidates=("works", "<i>"), numbers={"x": NAN},
    )  # fmt: skip
    row = reports.folded(0).model_copy(update={"findings": (finding,)})
    record = reports.run_record(rounds=(row,), best=0)
    text = page.write_report(reports.fill(tmp_path, record)).read_text(encoding="utf-8")
    assert '<span class="badge good">✓ works</span>' in text
    assert "<script" not in text and "&lt;b&gt;do&lt;/b&gt;" in text and "&lt;i&gt;" in text
    again = RunRecord.model_validate_json((tmp_path / "run.json").read_text())
    assert again.model_dump_json() == record.model_dump_json()
