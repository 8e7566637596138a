"""The unsteered control: the same heal on what the student writes by itself, read beside it."""

import shutil
from pathlib import Path

import pytest

import reports
from steerheal.config import FilterSettings, RunConfig, SamplingSettings
from steerheal.filter.calibrate import calibrate, seed_of
from steerheal.heal.train import Healed
from steerheal.measure.stats import mean
from steerheal.pipeline.ends import best_round, stop_reason
from steerheal.pipeline.stage_work import Counted
from steerheal.pipeline.stages import CONTROL, HEALED_CONTROL
from steerheal.pipeline.unsteered import unsteered
from steerheal.records import (
    Calibrated,
    Comparison,
    Control,
    HealLog,
    OnTest,
    Reading,
    Readings,
    RoundRecord,
    RunRecord,
    Scores,
    Unsteered,
)
from steerheal.report.headline import conditions, headline
from steerheal.report.table import COURSE, PRICE, rounds_table
from steerheal.state.values import State, base
from steerheal.store import read_harvest, read_record, read_run, read_scores, round_folder
from test_loop import TINY, start

import tiny

OPEN = FilterSettings(**TINY["filter"])
"""Rules that let everything through."""
SAMPLING = SamplingSettings(**TINY["sampling"])
ASKED = ("train 0", "train 1", "train 0", "train 3")


@pytest.fixture(scope="module")
def limits() -> Calibrated:
    return calibrate(tiny.chat(), tiny.persona(), SAMPLING, OPEN, seed=seed_of(0))


def written(
    limits: Calibrated, rules: FilterSettings = OPEN, student: State | None = None
) -> Unsteered:
    return unsteered(
        tiny.chat(), student or base(), tiny.persona(), ASKED, limits,
        tries=3, sampling=SAMPLING, rules=rules, seed=7,
    )  # fmt: skip


def test_every_kept_prompt_is_answered_once_by_the_calibration_or_a_new_draw(
    limits: Calibrated,
) -> None:
    short = limits.model_copy(update={"coherent": limits.coherent[:3]})
    found = written(short)
    assert [text.prompt for text in found.texts] == list(ASKED)
    assert all(text.dose == 0 for text in found.texts)
    # The calibration's first three texts answer train 0, 1 and 2, each of them once.
    assert found.texts[:2] == limits.coherent[:2]
    assert (found.reused, found.drawn, found.unfiltered) == (2, 2, 0)
    assert found.texts[2] not in limits.coherent


def test_a_later_student_answers_everything_itself(limits: Calibrated) -> None:
    found = written(limits, student=base().prompted("You are warm."))
    assert (found.reused, found.drawn) == (0, 4)


def test_what_never_passes_the_filter_stands_and_is_counted(limits: Calibrated) -> None:
    none = limits.model_copy(update={"coherent": ()})
    found = written(none, OPEN.model_copy(update={"words": 500}))
    assert (len(found.texts), found.drawn, found.unfiltered) == (4, 12, 4)


def round_with(net: Reading) -> RoundRecord:
    """A folded round whose healed trait is `net` above its control's."""
    less = Comparison(
        a="control", b="healed", instrument="likelihood", n=7, delta_nats={}, delta_clr={},
        surgical=None, **reports.readings(gain=net),
    )  # fmt: skip
    control = Control(
        texts=64, reused=60, unfiltered=1, read=reports.summary("control", 0.03, 0.98),
        retain=reports.reading(0.41),
    )  # fmt: skip
    return reports.folded(0).model_copy(update={"control": control, "comparisons": (less,)})


def test_training_alone_makes_no_round_the_best_one_and_ends_the_loop() -> None:
    rows = [round_with(reports.reading(net)) for net in (0.03, -0.01, 0.02)]
    rows = [row.model_copy(update={"round": i}) for i, row in enumerate(rows)]
    gains = (0.1, 0.3, 0.2)
    rows = [
        row.model_copy(update={"healed": reports.put(row.healed, gain=reports.reading(gain))})
        for row, gain in zip(rows, gains, strict=True)
    ]
    number, why = best_round(rows, 0.95)
    assert number == 0 and "the most trait beyond the unsteered control, +0.030" in why
    number, why = best_round(rows[1:2], 0.95)
    assert number is None and "no round" in why and "at best −0.010" in why
    assert "of trait beyond the unsteered control" in stop_reason(rows, RunConfig(patience=2))
    one_unread = [rows[0], rows[1].model_copy(update={"comparisons": ()}), rows[2]]
    number, why = best_round(one_unread, 0.95)
    assert number == 1 and "gained the most trait, +0.300" in why
    assert stop_reason(one_unread, RunConfig(patience=2)) == ""


def test_the_headline_gives_the_trait_beside_its_control() -> None:
    record = reports.run_record(rounds=(round_with(reports.reading(0.04)),), best=0)
    beside = (
        "its unsteered control +0.02 nats/token [−0.01, 0.05], "
        "healed less control +0.04 nats/token [0.01, 0.07]"
    )
    assert beside in headline(record)
    rose = conditions(record, None)[0]
    assert "above its unsteered control" in rose.text
    assert beside in rose.numbers and rose.holds is True
    course = rounds_table(record, "", COURSE).rows[-1]
    assert ("0.03", "healed +0.04 [0.01, 0.07]") in [cell[:2] for cell in course]
    price = rounds_table(record, "", PRICE).rows[-1]
    assert ("0.41", "[0.38, 0.44]") in [cell[:2] for cell in price]


def test_a_trait_that_training_alone_gives_is_said_first_and_does_not_count() -> None:
    record = reports.run_record(rounds=(round_with(reports.reading(0.02)),), best=0)
    said = "The trait is not shown to be above its unsteered control, which was trained alike."
    assert headline(record).startswith(said)
    assert conditions(record, None)[0].holds is False


def test_on_test_prompts_the_control_is_that_of_the_test_prompts() -> None:
    row, gain = round_with(reports.reading(0.04)), reports.reading(0.06)
    control = Readings(**reports.readings(gain=reports.reading(0.05)))
    less = Readings(**reports.readings(gain=reports.reading(0.01)))
    tested = OnTest(
        round=0, prompts=9, control=control, over_control=less, **reports.readings(gain=gain)
    )
    record = reports.run_record(rounds=(row,), best=0, test=tested)
    assert "unsteered control +0.05 nats/token [0.02, 0.08]" in headline(record)
    assert conditions(record, None)[0].holds is False


def test_a_record_without_a_control_says_so_and_is_judged_as_before() -> None:
    record = reports.run_record(rounds=(reports.folded(0),), best=0)
    assert "no unsteered control was trained" in headline(record)
    rose = conditions(record, None)[0]
    assert rose.holds is True and "control" not in rose.text
    none = Control(texts=0, reused=0, unfiltered=0, reason="it broke")
    broken = reports.folded(0).model_copy(update={"control": none})
    assert "it broke" in headline(reports.run_record(rounds=(broken,), best=0))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    start(runs, rounds=1, control=True)
    return runs / "run"


@pytest.mark.slow
def test_the_control_is_the_same_heal_on_other_text(run: Path) -> None:
    kept = read_harvest(run, 0).kept(TINY["dose"]["want"])
    texts = read_record(round_folder(run, 0) / CONTROL / "texts.json", Unsteered).texts
    assert [text.prompt for text in texts] == [text.prompt for text in kept]
    healed, control = (
        read_record(round_folder(run, 0) / place / "heal.json", HealLog) for place in ("", CONTROL)
    )
    for name in ("trained_on", "held_out_completions", "held_out_reason", "lam"):
        assert getattr(healed, name) == getattr(control, name), name
    assert [step.lr for step in healed.steps] == [step.lr for step in control.steps]
    assert [step.ce for step in healed.steps] != [step.ce for step in control.steps]


@pytest.mark.slow
def test_the_trait_is_given_beside_the_control(run: Path) -> None:
    record = read_run(run)
    (done,) = record.rounds
    healed, control = (read_scores(run, 0, state) for state in ("healed", CONTROL))
    gaps = [b.logodds - a.logodds for b, a in zip(healed.persona, control.persona, strict=True)]
    assert done.over_control == mean(gaps)
    assert done.control is not None and done.control.read is not None
    assert done.control.read.state == CONTROL
    assert done.control.texts == done.kept or done.control.texts == TINY["dose"]["want"]
    assert [(item.a, item.b) for item in done.comparisons[-2:]] == [
        ("base", CONTROL), (CONTROL, "healed"),
    ]  # fmt: skip
    # What the trait and coherence are read on, and nothing that would cost as much again.
    assert control.vignettes and control.own["answers_coherent"] and control.own["control_spill"]
    assert "control_spill" in done.comparisons[-1].changes
    assert not control.own.get("tasks_done") and not control.long


@pytest.mark.slow
def test_the_headline_s_prompts_are_answered_by_the_control_as_well(run: Path) -> None:
    found = read_run(run).test
    assert found is not None and found.control is not None and found.over_control is not None
    healed, control = (
        read_record(round_folder(run, 0) / place / "test.json", Scores) for place in ("", CONTROL)
    )
    gaps = [b.logodds - a.logodds for b, a in zip(healed.persona, control.persona, strict=True)]
    assert found.over_control.gain == mean(gaps)
    assert found.gain.value == pytest.approx(
        found.control.gain.value + found.over_control.gain.value
    )


@pytest.mark.slow
def test_what_is_planned_is_what_is_made(run: Path) -> None:
    record = read_run(run)
    counted = Counted(tiny.chat(), record.whose(run), record.settings(run))
    made = [(mark.round, mark.name) for mark in record.stages]
    assert [(one.round, one.name) for one in counted.stages()] == made


def again(run: Path, name: str, **changes: object) -> RunRecord:
    """A run of the same settings, its control's heal made anew."""
    for made in (run.parent / ".stages").glob(f"{HEALED_CONTROL.name}-*"):
        shutil.rmtree(made)
    return start(run.parent, name, rounds=1, control=True, **changes)


@pytest.mark.slow
def test_a_control_that_is_rejected_is_named_and_ends_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = HEALED_CONTROL.function

    def diverging(*args: object, **named: object) -> Healed:
        adapter, log = real(*args, **named)
        return Healed(adapter, log.model_copy(update={"outcome": "rejected", "reason": "it broke"}))

    tiny.in_place_of(monkeypatch, "HEALED_CONTROL", diverging)
    record = again(run, "rejected")
    (done,) = record.rounds
    assert (done.outcome, record.status) == ("folded", "finished")
    assert done.control is not None and done.control.reason == "it broke"
    assert done.over_control is None
    assert record.test is not None and record.test.over_control is None
