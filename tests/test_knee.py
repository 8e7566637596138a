"""The curve of doses and its knee: smoothing, crossing, what is asked, and a run that finds it."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from steerheal import streams
from steerheal.cli import parse
from steerheal.config import (
    DoseSettings,
    FilterSettings,
    PushSettings,
    RunConfig,
    SamplingSettings,
    validated,
)
from steerheal.errors import UserError
from steerheal.filter.coherent import APART, broken
from steerheal.measure.stats import share
from steerheal.models.generate import Draw
from steerheal.pipeline import knee
from steerheal.pipeline.knee import curve, falling, kneed
from steerheal.records import Calibration, Completion, Curve, Reading, Verdict
from steerheal.report.curve import curve_table
from steerheal.report.page import write_report
from steerheal.state.values import State, base
from steerheal.state.vector import SteeringVector
from steerheal.store import read_harvest, read_record, read_run
from steerheal.streams import stream
from test_loop import TINY, start

import tiny

DOSES = (0.0, 0.5, 1.0, 2.0, 4.0)


def of(good: Sequence[int], n: int = 16) -> list[Reading]:
    """Shares of n answers."""
    return [share([1] * k + [0] * (n - k)) for k in good]


def found(good: Sequence[int], asked: float = 0.75, *, own: int | None = None) -> Curve:
    shares = of(good)
    base_share = shares[0] if own is None else of([own])[0]
    return kneed(DOSES, shares, base_share, asked=asked, tokens=24)


def test_the_smoothed_share_never_rises_and_runs_that_rise_become_their_mean() -> None:
    assert falling([0.9, 1.0, 0.8, 0.9, 0.2]) == pytest.approx([0.95, 0.95, 0.85, 0.85, 0.2])
    assert falling([0.2, 0.4, 0.9]) == pytest.approx([0.5] * 3)
    random = np.random.default_rng(0)
    for _ in range(50):
        values = random.random(6)
        smooth = falling(values)
        assert all(a >= b for a, b in itertools.pairwise(smooth))
        assert math.fsum(smooth) == pytest.approx(values.sum())
        # No other sequence that never rises is nearer: here, of those near it.
        gap = ((values - smooth) ** 2).sum()
        others = -np.sort(-(np.array(smooth) + 0.1 * random.standard_normal((200, 6))), axis=1)
        assert (((others - values) ** 2).sum(axis=1) >= gap - 1e-12).all()


def test_the_knee_is_read_off_the_line_between_two_doses() -> None:
    one = found([16, 16, 16, 14, 10])
    assert one.outcome == "found" and one.level == 0.75
    # From 14 of 16 at dose 2 to 10 at dose 4, 12 lie half way.
    assert one.dose == pytest.approx(3.0)
    assert found([16, 16, 16, 14, 10], asked=0.95).dose == pytest.approx(1.0 + 0.8 / 2)


def test_the_level_is_a_share_of_the_base_s_own_and_one_bad_dose_decides_nothing() -> None:
    # 12 of 16 is all that the base gives.
    assert found([12, 12, 12, 12, 6]).dose == pytest.approx(3.0)
    assert found([16, 11, 16, 16, 0], asked=0.75).dose > 2


def test_a_curve_without_a_knee_says_which_end_is_taken() -> None:
    holds = found([16, 16, 16, 15, 14])
    assert (holds.outcome, holds.dose) == ("holds", 4.0)
    assert "no knee up to dose 4" in holds.words() and "88%" in holds.words()
    # A student that is worse than three quarters of the base before any dose.
    gone = found([8, 8, 7, 3, 0], own=16)
    assert (gone.outcome, gone.dose) == ("gone", 0.5)
    assert "without a dose only 50%" in gone.words()
    assert "the knee is at dose 3: there 75%" in found([16, 16, 16, 14, 10]).words()


def test_sixteen_answers_place_a_knee_at_three_quarters_within_a_dose() -> None:
    # The embedded model's own curve over eight seeds.
    doses = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
    true = np.array([0.93, 0.93, 0.93, 0.89, 0.84, 0.58, 0.26])
    random = np.random.default_rng(0)
    knees = []
    for _ in range(400):
        shares = [share(random.random(16) < p) for p in true]
        knees.append(kneed(doses, shares, shares[0], asked=0.75, tokens=24).dose)
    low, middle, high = np.quantile(knees, [0.05, 0.5, 0.95])
    assert abs(middle - 2.55) < 0.15 and high - low < 1.4


# ── what is asked ───────────────────────────────────────────────────────────────────────────────

LIMITS = Calibration(
    texts=8, classes={}, medians={}, spreads={}, limits={"tail perplexity": 9.0}, dropped={}
)


class Rules:
    """Instead of a model: text breaks above a dose, and narrates below it."""

    asked: ClassVar[list[tuple[tuple[str, ...], list[Draw], SamplingSettings, bool]]] = []

    def __init__(self, *given: Any) -> None:
        _, _, _, _, self.sampling, self.rules, self.bar = given

    def __call__(
        self, states: Sequence[State], draws: Sequence[Draw]
    ) -> list[tuple[Completion, Verdict]]:
        names = tuple(state.name for state in states)
        self.asked.append((names, list(draws), self.sampling, self.rules.read_trait))
        with self.bar("sampling", len(draws)):
            return [(said(draw), verdict(states[draw.state].dose <= 2)) for draw in draws]


def said(draw: Draw) -> Completion:
    return Completion(prompt=draw.prompt, text="x", tokens=(1,), dose=0, seed=draw.seed, ended=True)


def verdict(coherent: bool) -> Verdict:
    why = ("narrates", "base-like") if coherent else ("narrates", "loops (words)")
    return Verdict(
        kept=False, reasons=why, tail_perplexity=1, word_repetition=0, char_repetition=0, words=9
    )


@pytest.fixture
def ruled(monkeypatch: pytest.MonkeyPatch) -> type[Rules]:
    monkeypatch.setattr(Rules, "asked", [])
    monkeypatch.setattr(knee, "Judge", Rules)
    return Rules


def read(teacher: State, **changes: Any) -> Curve:
    dose = DoseSettings.model_validate(
        {"curve": (4.0, 1.0, 2.0), "curve_prompts": 3, "curve_tokens": 20} | changes
    )
    return curve(
        None, teacher, tiny.persona(), LIMITS, dose=dose, push=PushSettings(),  # type: ignore[arg-type]
        sampling=SamplingSettings(tokens=12), rules=FilterSettings(), seed=7,
    )  # fmt: skip


def steered() -> State:
    return base().steered(SteeringVector({1: torch.ones(32)}), 1.0)


def test_every_dose_answers_the_same_prompts_from_the_same_seeds_in_one_batch(
    ruled: type[Rules],
) -> None:
    one = read(steered(), coherence=0.5)
    ((names, draws, sampling, trait),) = ruled.asked
    assert names == ("steered 0", "steered 1", "steered 2", "steered 4")
    asked = [[(draw.prompt, draw.seed) for draw in draws if draw.state == k] for k in range(4)]
    assert all(each == asked[0] for each in asked)
    assert [prompt for prompt, _ in asked[0]] == list(tiny.persona().prompts.train[:3])
    # No longer than what is trained on, and no poles are read.
    assert sampling.tokens == 12 and not trait
    # Reasons that say nothing of coherence do not count; the knee is half way from 2 to 4.
    assert [point.coherent.value for point in one.points] == [1, 1, 1, 0]
    assert one.dose == pytest.approx(3.0) and one.tokens == 12


def test_a_student_that_is_not_the_base_is_held_against_the_base_itself(
    ruled: type[Rules],
) -> None:
    read(steered().prompted("Be warm."))
    assert [names for names, *_ in ruled.asked][1:] == [("base",)]
    read(steered())
    assert len(ruled.asked) == 3


def test_coherence_is_every_rule_but_those_on_what_a_text_is_about() -> None:
    kept = verdict(True)
    assert not broken(kept) and broken(verdict(False)) == ("loops (words)",)
    assert {"thought", "narrates", "refuses", "base-like"} == APART


# ── streams, settings and a run ─────────────────────────────────────────────────────────────────


def test_no_two_uses_rounds_or_seeds_share_a_stream() -> None:
    once = (streams.CALIBRATION, streams.EVALUATION, streams.TEST, streams.SWEEP, streams.ANCHOR)
    each = (streams.HARVEST, streams.CURVE)
    found = [
        [stream(seed, use) for seed in range(4) for use in once],
        [stream(seed, use, number) for seed in range(4) for use in each for number in range(100)],
    ]
    every = list(itertools.chain(*found))
    assert len(set(every)) == len(every)
    assert stream(3, streams.HARVEST, 2) == 3 * 1_009 + 2


def test_a_start_is_auto_or_a_number() -> None:
    assert RunConfig().dose.start == "auto"
    assert validated(DoseSettings, {"start": "1.5"}, source="x").start == 1.5
    for wrong in ("knee", 0, -1.0, True, math.inf):
        with pytest.raises(UserError, match="start"):
            validated(DoseSettings, {"start": wrong}, source="x")


AUTO = {"start": "auto", "curve": (0.5, 1.0, 2.0), "curve_prompts": 3, "curve_tokens": 6}


@pytest.mark.slow
def test_a_run_finds_its_dose_anew_in_every_round_and_reports_it(tmp_path: Path) -> None:
    record = start(tmp_path, dose=AUTO, check={"prompts": 2, "per_foundation": 1, "tokens": 6})
    assert len(record.rounds) == 2
    for row in record.rounds:
        assert row.curve is not None and [p.dose for p in row.curve.points] == [0, 0.5, 1, 2]
        assert row.walk[0].multiplier == row.curve.dose
        place = tmp_path / "run" / f"round-{row.round + 1:02d}"
        assert repr(read_record(place / "curve.json", Curve)) == repr(row.curve)
        assert read_harvest(tmp_path / "run", row.round).needed <= 0.1
    first = record.rounds[0]
    assert first.sweep is not None and first.curve is not None
    doses = [point.dose for point in first.sweep.points if not point.control]
    assert doses == pytest.approx([k * first.curve.dose for k in TINY["check"]["doses"]])
    page = write_report(tmp_path / "run").read_text()
    assert "coherent answers by dose" in page and "On the curve of doses" in page
    assert repr(read_run(tmp_path / "run").rounds[0].curve) == repr(first.curve)


@pytest.mark.slow
def test_a_number_reads_no_curve(tmp_path: Path) -> None:
    record = start(tmp_path, rounds=1)
    assert record.rounds[0].curve is None and record.rounds[0].walk[0].multiplier == 1.0
    assert not (tmp_path / "run" / "round-01" / "curve.json").exists()
    assert "curve of doses" not in write_report(tmp_path / "run").read_text()


@pytest.mark.slow
def test_the_table_has_the_knee_in_its_place(tmp_path: Path) -> None:
    (row,) = start(tmp_path, rounds=1).rounds
    table = curve_table(row.model_copy(update={"curve": found([16, 16, 16, 14, 10])}))
    assert [cells[0].text for cells in table.rows] == ["0", "0.5", "1", "2", "3", "4"]
    assert table.rows[4][0].under == "the knee" and table.rows[4][2].text == "0.75"
    whole = curve_table(row.model_copy(update={"curve": found([16, 16, 16, 15, 14])}))
    assert len(whole.rows) == 5


def test_a_wrong_start_is_one_sentence_with_what_is_allowed() -> None:
    with pytest.raises(UserError) as told:
        parse("run", ["--dose.start", "-1"])
    assert str(told.value).count("--dose.start") == 1
    assert "above 0" in str(told.value) and "auto" in str(told.value)
