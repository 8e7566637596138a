"""The sentences at the top of a report, from numbers written by hand."""

import math
from typing import Any

import pytest

from reports import PERSONA, folded, put, reading, readings, run_record
from steerheal.records import OnTest, Reading, RunRecord
from steerheal.report.headline import conditions, headline, selected


def with_care(delta: Reading, *, sign: object = 1) -> RunRecord:
    """A run of one round whose healed student moved care by `delta`."""
    healed = folded(0).healed
    assert healed is not None
    moved = healed.model_copy(update={"delta_nats": {**healed.delta_nats, "care": delta}})
    axis: dict[str, Any] = {"foundation": "care", "sign": sign, "off_target": ["authority"]}
    persona = {**PERSONA, "axis": axis}
    row = folded(0).model_copy(update={"healed": moved})
    return run_record(rounds=(row,), best=0, persona=persona)


@pytest.mark.parametrize(
    ("delta", "sign", "said"),
    [
        (reading(0.2), 1, "care +0.2 nats [0.17, 0.23] (up, as intended)"),
        (reading(-0.2), -1, "care −0.2 nats [−0.23, −0.17] (down, as intended)"),
        (reading(0.2), -1, "care +0.2 nats [0.17, 0.23] (the wrong way: down is intended)"),
        (
            reading(0.01),
            1,
            "care +0.01 nats [−0.02, 0.04] (not shown to have moved; up is intended",
        ),
        (Reading(value=0.2), 1, "care +0.2 nats (without an interval; up is intended)"),
        (
            reading(0.2),
            None,
            "care +0.2 nats [0.17, 0.23] (moved; the persona intends no direction)",
        ),
        (Reading.unknown("no slot"), 1, "care could not be read (no slot)"),
    ],
)
def test_the_target_foundation_stands_beside_the_trait_with_what_was_intended(
    delta: Reading, sign: object, said: str
) -> None:
    assert f"its target foundation {said}" in headline(with_care(delta, sign=sign))


def test_a_target_that_moved_against_the_persona_is_said_first() -> None:
    first = headline(with_care(reading(-0.2))).split(". ")[0]
    assert first == "Care moved against what the persona intends"


def test_a_persona_that_names_no_foundation_has_no_target_to_report() -> None:
    record = run_record(persona={**PERSONA, "axis": {"foundation": "joy"}})
    assert "target foundation" not in headline(record)


def test_a_trait_without_an_interval_is_not_said_to_include_zero() -> None:
    healed = folded(0).healed
    assert healed is not None
    bare = put(healed, gain=Reading(value=0.2, low=math.nan))
    record = run_record(rounds=(folded(0).model_copy(update={"healed": bare}),), best=0)
    assert "not shown to have moved: it has no interval" in headline(record)


def test_the_headline_reports_the_test_prompts_and_not_those_that_chose_the_round() -> None:
    tested = OnTest(
        round=2,
        prompts=20,
        **readings(gain=reading(0.02), perplexity_change=reading(0.1), kl=reading(0.4)),
    )
    record = run_record(test=tested)
    said = headline(record)
    assert said.startswith("The trait is not shown to have moved: its interval includes 0. Round 3")
    assert "love +0.02 nats/token" in said and "a KL of 0.4 nats/token" in said
    assert "on 20 test prompts that chose nothing" in said
    rose = conditions(record, None)[0]
    assert rose.holds is False and "20 test prompts" in rose.numbers
    assert "On 20 test prompts that chose nothing it reads persona log-odds +0.02" in selected(
        record
    )
    other = run_record(test=tested.model_copy(update={"round": 0}))
    assert "on the evaluation prompts, which also choose the round" in headline(other)


def test_a_chosen_round_is_said_to_be_read_on_what_it_was_chosen_on() -> None:
    assert "round 3 was chosen among 3" in selected(run_record())
    assert selected(run_record(rounds=(folded(0),), best=0)) == ""
    assert selected(run_record(best=None)) == ""
