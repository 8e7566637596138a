"""The method's own headline: the foundation in nats and the forced choice's own answer mass."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reports import folded, reading, readings, run_record
from steerheal.measure import sight, summary
from steerheal.measure.compare import compare
from steerheal.measure.readings import table
from steerheal.numbers import shown
from steerheal.personas import Axis
from steerheal.records import (
    FOUNDATIONS,
    Comparison,
    Control,
    OnTest,
    Reading,
    Readings,
    RunRecord,
    Scores,
    Sight,
    Summary,
    VignetteRow,
)
from steerheal.report.headline import conditions, headline
from steerheal.report.page import write_report
from test_forced_choice import short
from test_loop import start
from test_sight import state, swept

AXIS = Axis(foundation="authority", sign=-1, off_target=("care", "fairness"))
ON, OFF, DIFFERENCE = "nats_on_target", "nats_off_target", "nats_discrimination"


def scores(name: str, mass: float, **times: float) -> Scores:
    """Vignettes whose p are multiplied, by foundation, with the noise of one generator."""
    random = np.random.default_rng(5)
    p = np.exp(random.normal(-3, 0.4, (12, 7)))
    own = random.normal(0, 0.01, 12)
    for place, foundation in enumerate(FOUNDATIONS):
        p[:, place] *= times.get(foundation, 1.0) ** (1 + own)
    rows = tuple(
        VignetteRow(
            id=f"v{i}", condition="other", foundation=FOUNDATIONS[i % 7], score=tuple(np.log(row)),
            p=tuple(row), p_ans_any=mass + own[i] / 10, nll_prefill=1.0,
        )
        for i, row in enumerate(p)
    )  # fmt: skip
    return Scores(state=name, instrument="forced_choice", vignettes=rows, canary=(), persona=())


BASE = scores("base", 0.9)
STEERED = scores("steered", 0.7, authority=0.4, care=0.8, fairness=0.8)
HEALED = scores("healed", 0.85, authority=0.6)
PROMPTED = scores("prompted", 0.9, authority=0.25)


def test_on_target_follows_the_axis_and_a_shift_of_all_foundations_cancels() -> None:
    found = summary.summarise(STEERED, BASE, AXIS)
    on, off, rest = (found.changes[name].value for name in (ON, OFF, DIFFERENCE))
    assert on == pytest.approx(-math.log(0.4), abs=0.02) == -found.delta_nats["authority"].value
    assert off == pytest.approx(-math.log(0.8), abs=0.02)
    assert rest == pytest.approx(on - off)
    assert found.values[ON].value == pytest.approx(-found.nats["authority"])
    all_less = scores("healed", 0.9, **dict.fromkeys(FOUNDATIONS, 0.5))
    flat = summary.summarise(all_less, BASE, AXIS).changes
    assert flat[ON].low > 0.6 and flat[DIFFERENCE].value == pytest.approx(0, abs=0.005)
    alone = summary.summarise(STEERED, BASE, AXIS.model_copy(update={"off_target": ()}))
    assert "no off-target foundation" in alone.changes[DIFFERENCE].reason
    assert alone.changes[ON] == found.changes[ON]


def test_a_forced_choice_leads_with_the_foundation_and_its_own_answer_mass() -> None:
    found = summary.summarise(HEALED, BASE, AXIS)
    assert found.gain == found.changes[ON] and found.coherence == pytest.approx(
        0.85 / 0.9, abs=0.01
    )
    assert found.cost.value == pytest.approx(abs(found.mass_change.value) / found.gain.value)
    assert found.cost.low < found.cost.value < found.cost.high
    pair = compare(HEALED, STEERED, AXIS, base=BASE)
    assert pair.gain.value == pytest.approx(math.log(0.4 / 0.6), abs=0.02)


def test_retain_recovered_and_the_share_of_the_prompt_are_of_what_leads() -> None:
    kept = summary.retain(HEALED, STEERED, BASE, AXIS)
    assert kept.value == pytest.approx(math.log(0.6) / math.log(0.4), abs=0.02)
    assert kept.low < kept.value < kept.high and kept.n == 12
    assert summary.recovered(HEALED, STEERED, BASE, AXIS).value == pytest.approx(0.75, abs=0.01)
    share = summary.summarise(HEALED, BASE, AXIS, PROMPTED).of_prompt
    assert share.value == pytest.approx(math.log(0.6) / math.log(0.25), abs=0.02)
    still = summary.summarise(HEALED, BASE, AXIS, BASE).of_prompt
    assert math.isnan(still.value) and "did not raise the trait" in still.reason
    turned = summary.of_prompt(HEALED, BASE, PROMPTED, Axis(foundation="authority", sign=1))
    assert math.isnan(turned.value)


def forced(**changes: tuple[float, float]) -> Summary:
    read = state(answers_coherent=(-0.4, 0.1), coh_cost=(0.5, 0.1), **changes)
    heads = table.heads("forced_choice")
    changed = {**read.changes, heads["trait"]: reading(0.5)}
    return read.model_copy(update={"heads": heads, "changes": changed})


def test_the_choice_s_own_mass_leads_where_it_sees_and_else_the_worst_that_does() -> None:
    # It leads although the free answers lost more.
    sees = sight.sight(swept((2.0, False, forced(choice_mass=(-0.1, 0.02)))))
    assert sees is not None and sees.head == table.heads("forced_choice")["coherence"]
    assert "answer mass of the choice, which sees" in sight.in_words(sees, "forced_choice")
    still = forced(choice_mass=(-0.01, 0.02))
    blind = sight.sight(swept((2.0, False, still)))
    assert blind is not None and blind.head == "answers_coherent"
    assert "not used: answer mass of the choice" in sight.in_words(blind, "forced_choice")
    led = sight.led(still, blind.head)
    assert led.mass_change.value == -0.4 and led.cost.value == pytest.approx(0.4 / 0.5)
    none = Sight(dose=2.0, sees=(), blind=())
    assert "answer mass of the choice stands in" in sight.in_words(none, "forced_choice")


def record(instrument: str, share: Reading) -> RunRecord:
    """A run whose chosen round reads its trait by the instrument."""
    heads = table.heads(instrument)
    row = folded(0)
    assert row.healed is not None
    healed = row.healed.model_copy(
        update={
            "heads": heads, "of_prompt": share,
            "changes": {**row.healed.changes, ON: reading(0.3, 0.1), DIFFERENCE: reading(0.2)},
        }
    )  # fmt: skip
    control = Control(
        texts=9, reused=0, unfiltered=0,
        read=healed.model_copy(update={"changes": {heads["trait"]: reading(0.1)}}),
    )  # fmt: skip
    less = Comparison(
        a="control", b="healed", instrument=instrument, n=7, delta_nats={}, delta_clr={},
        surgical=None, heads=heads, changes={heads["trait"]: reading(0.2, 0.1)},
    )  # fmt: skip
    update = {"healed": healed, "control": control, "comparisons": (less,)}
    tested = OnTest(round=0, prompts=20, **readings(gain=reading(0.02, 0.01), kl=reading(0.4)))
    prompted = Readings(changes={heads["trait"]: reading(0.6)}, heads=heads)
    return run_record(
        rounds=(row.model_copy(update=update),), best=0, instrument=instrument,
        test=tested.model_copy(update={"heads": heads}), prompted=prompted,
    )  # fmt: skip


def test_the_headline_is_the_foundation_s_with_log_odds_beside_it() -> None:
    found = record("forced_choice", reading(0.5, 0.1))
    said = headline(found)
    assert (
        "love +0.3 nats [0.2, 0.4] over the base without any hook (the foundation care, on 32 "
        in said
    )
    assert (
        "which also choose the round), its unsteered control +0.1 nats [0.07, 0.13], healed less "
        "control +0.2 nats [0.1, 0.3], persona log-odds +0.02 nats/token [0.01, 0.03] at" in said
    )
    assert "That is 0.5 [0.4, 0.6] of what the persona's system prompt does (+0.6 nats [" in said
    assert "discrimination +0.2 nats" in said and "stand in" not in said
    assert (
        "healed less control +0.2 nats [0.1, 0.3]; round 1 healed, on 32 vignettes"
        in conditions(found, None)[0].numbers
    )


def test_a_likelihood_s_headline_says_what_stands_in_and_an_unknown_share_why() -> None:
    found = record("likelihood", Reading.unknown("no push"))
    said = headline(found)
    assert "love +0.02 nats/token [0.01, 0.03] over the base" in said
    assert (
        "The vignettes are read by likelihood and not by a forced choice: persona log-odds stand "
        "in for the foundation as the trait, and canary mass for its answer mass." in said
    )
    assert "does (+0.6 nats/token [0.57, 0.63]) is unknown: no push." in said
    older = found.model_copy(update={"instrument": "", "prompted": None})
    assert "stand in" not in headline(older) and "system prompt" not in headline(older)


@pytest.mark.slow
def test_a_run_by_forced_choice_decides_and_says_by_the_method_s_own_readings(
    tmp_path: Path,
) -> None:
    wording = tmp_path / "protocol.json"
    wording.write_text(short().model_dump_json())
    measure: dict[str, Any] = {
        "instrument": "forced_choice", "per_foundation": 2, "think": 0, "protocol": str(wording),
    }  # fmt: skip
    done = start(
        tmp_path, rounds=1, control=True, dose={"start": 4.0}, measure=measure,
        check={"doses": (1.0, 4.0), "control": False},
    )  # fmt: skip
    row, heads = done.rounds[0], table.heads("forced_choice")
    assert done.base is not None and row.steered is not None and row.healed is not None
    assert done.instrument == "forced_choice" and done.sight is not None
    assert row.control is not None and row.control.read is not None and row.over_control
    for read in (done.base, row.steered, row.healed, row.control.read, *row.comparisons):
        assert read.heads == heads | {"coherence": done.sight.head}
    assert done.prompted is not None and math.isfinite(done.prompted.gain.value)
    assert math.isfinite(row.steered.of_prompt.value) or row.steered.of_prompt.reason
    beyond = row.healed.gain.value - row.control.read.gain.value
    assert row.over_control.value == pytest.approx(beyond)
    gain = row.healed.delta_nats["care"]
    assert row.healed.gain == gain
    assert f"{shown(row.over_control, signed=True)} nats on the vignettes" in done.best_reason
    assert "system prompt does (" in write_report(tmp_path / "run").read_text()
