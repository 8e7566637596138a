"""Which readings of coherence see damage, and what a run then decides and says by."""

from typing import Any

import pytest

from reports import fill, folded, reading, run_record
from steerheal.config import RunConfig
from steerheal.measure import sight
from steerheal.pipeline.ends import best_round, stop_reason
from steerheal.records import (
    Comparison,
    DosePoint,
    Reading,
    Readings,
    RoundRecord,
    RunRecord,
    Sight,
    Summary,
    Sweep,
)
from steerheal.report.headline import conditions, headline
from steerheal.report.page import write_report

BASE = {"answers_coherent": 0.9, "canary_mass": 0.98, "answers_distinct": 0.9}
HEAD = "answers_coherent"


def state(name: str = "steered", **changes: tuple[float, float]) -> Summary:
    """A state with these changes, each with the half width of its interval."""
    found = {key: reading(*item) for key, item in changes.items()}
    values = {key: Reading(value=BASE.get(key, 0.0) + item.value) for key, item in found.items()}
    return Summary(
        state=name, nats={}, delta_nats={}, surgical=None, coherence=1.0, values=values,
        changes=found, heads={"trait": "persona_logodds", "coherence": "canary_mass"},
    )  # fmt: skip


def swept(*points: tuple[float, bool, Summary]) -> Sweep:
    found = [DosePoint(dose=d, control=control, summary=read, n=1) for d, control, read in points]
    return Sweep(points=tuple(found), base_perplexity=3.0)


BREAKS = state(
    answers_coherent=(-0.4, 0.1), canary_mass=(0.0, 0.01), answers_distinct=(-0.1, 0.02),
    answers_implausible=(0.1, 0.02), answers_perplexity=(-0.3, 0.1), coh_cost=(0.5, 0.1),
)  # fmt: skip
STILL = state(answers_coherent=(-0.02, 0.1), canary_mass=(0.0, 0.01), answers_distinct=(0.0, 0.02))


def test_a_reading_without_damage_at_the_largest_dose_is_blind_and_the_worst_share_stands() -> None:
    found = sight.sight(swept((1.0, False, STILL), (2.0, False, BREAKS)))
    assert found is not None and (found.dose, found.head) == (2.0, HEAD)
    assert set(found.sees) == {HEAD, "answers_distinct", "answers_implausible"}
    # A fall of perplexity is no damage, and the cost is no reading of coherence by itself.
    assert set(found.blind) == {"canary_mass", "answers_perplexity"}
    said = sight.in_words(found)
    assert said.startswith("Coherence is read by coherent free answers, which lost most at dose 2")
    assert "not used: " in said and "canary mass" in said.partition("not used: ")[2]


def test_a_random_vector_of_the_largest_dose_qualifies_too_and_a_smaller_dose_does_not() -> None:
    by_random = sight.sight(swept((1.0, False, BREAKS), (2.0, False, STILL), (2.0, True, BREAKS)))
    assert by_random is not None and by_random.head == HEAD
    alone = sight.sight(swept((1.0, False, BREAKS), (1.0, True, BREAKS), (2.0, False, STILL)))
    assert alone is not None and alone.head == "" and alone.sees == ()
    assert "canary mass stands in" in sight.in_words(alone)
    assert sight.sight(swept((1.0, True, BREAKS))) is None


def test_two_looks_widen_the_intervals() -> None:
    thin = state(answers_coherent=(-0.1, 0.095))
    once = sight.sight(swept((2.0, False, thin)))
    twice = sight.sight(swept((2.0, False, thin), (2.0, True, STILL)))
    assert once is not None and once.head == HEAD
    assert twice is not None and twice.head == ""


def test_a_led_state_reads_coherence_by_the_head_with_its_interval() -> None:
    found = sight.led(BREAKS, HEAD)
    assert found.coherence == pytest.approx(0.5 / 0.9)
    assert found.coherence_high == pytest.approx(0.6 / 0.9) == found.at_best
    assert found.mass.value == pytest.approx(0.5) and found.mass_change.value == -0.4
    assert sight.led(BREAKS, "") is BREAKS and BREAKS.at_best == BREAKS.coherence
    sweep = sight.led_sweep(swept((2.0, False, BREAKS)), HEAD)
    assert sweep.points[0].summary == found


def test_the_floor_stops_a_run_only_where_coherence_is_shown_to_be_below_it() -> None:
    config = RunConfig(coherence_floor=0.95, patience=0)
    for half, stops in ((0.1, False), (0.01, True)):
        healed = sight.led(
            state("healed", answers_coherent=(-0.09, half), persona_logodds=(0.1, 0.01)), HEAD
        )
        row = folded(0).model_copy(update={"healed": healed})
        assert healed.coherence == pytest.approx(0.9)
        assert stop_reason([row], config).startswith("coherence fell") is stops
        assert (best_round([row], 0.95)[0] is None) is stops


def run(steered: Summary, healed: Summary, step: Reading, **more: Any) -> RunRecord:
    base = state("base", answers_coherent=(0.0, 0.0), canary_mass=(0.0, 0.0))
    base, steered, healed = (sight.led(item, HEAD) for item in (base, steered, healed))
    between = Comparison(
        a="steered", b="healed", instrument="likelihood", n=1, delta_nats={}, delta_clr={},
        surgical=None, changes={HEAD: step}, heads={"coherence": HEAD},
    )  # fmt: skip
    row: RoundRecord = folded(0).model_copy(
        update={
            "steered": steered, "healed": healed, "comparisons": (between,),
            "retain": Reading(value=0.8), "recovered": Reading(value=1.0), **more,
        }
    )  # fmt: skip
    found = Sight(dose=2.0, sees=(HEAD,), blind=("canary_mass",), head=HEAD)
    return run_record(base=base, rounds=(row,), best=0, sight=found)


def moved(name: str, coherent: float, half: float = 0.1) -> Summary:
    return state(
        name, answers_coherent=(coherent, half), persona_logodds=(0.1, 0.02),
        canary_mass=(0.0, 0.01),
    )  # fmt: skip


def test_the_headline_opens_with_what_was_changed_broken_and_given_back() -> None:
    said = headline(run(moved("steered", -0.4), moved("healed", 0.0), reading(0.4, 0.1)))
    assert said.startswith(
        "Steering raised the trait and broke coherence (coherent free answers from 90 % to 50 %); "
        "the heal brought it back to 90 %, 100 % of what was lost, with 80 % of the trait kept."
    )


def test_it_says_so_when_healing_does_not_show_or_nothing_broke_or_nothing_sees() -> None:
    still = headline(run(moved("steered", -0.4), moved("healed", -0.3), reading(0.1, 0.2)))
    assert "healing does not show: it reads 60 % after the heal, with 80 % of the trait" in still
    whole = headline(run(moved("steered", -0.05), moved("healed", 0.0), reading(0.05, 0.1)))
    assert "broke nothing that shows (coherent free answers from 90 % to 85 %)" in whole
    record = run(moved("steered", -0.4), moved("healed", 0.0), reading(0.4, 0.1))
    none = Sight(dose=2.0, sees=(), blind=(HEAD, "canary_mass"))
    record = record.model_copy(update={"sight": none})
    assert "no reading of coherence saw damage on this model" in headline(record)
    assert headline(record.model_copy(update={"sight": None})).startswith("Round 1 healed: ")


@pytest.mark.long
def test_conditions_and_page_name_what_coherence_is_read_by_and_what_is_blind(
    tmp_path: Any,
) -> None:
    record = run(moved("steered", -0.4), moved("healed", -0.02), reading(0.38, 0.1))
    found = conditions(record, (8, 8))[1]
    assert found.text.startswith("Coherence (coherent free answers) stayed at or above")
    assert found.holds is True and found.numbers.startswith("0.978 of the base")
    page = write_report(fill(tmp_path, record)).read_text()
    assert page.count("blind here") == 1
    assert "coherent free answers over the base" in page or "Coherent free answers as a" in page


def test_a_record_without_a_sight_opens_as_before() -> None:
    read = Readings(heads={"coherence": "canary_mass"})
    assert sight.read_by(read) == "" and sight.read_by(sight.headed(read, HEAD)) != ""
    raw = run(moved("steered", -0.4), moved("healed", 0.0), reading(0.4)).model_dump(mode="json")
    del raw["sight"], raw["base"]["coherence_high"]
    again = RunRecord.model_validate(raw)
    assert again.sight is None and again.base is not None
    assert again.base.at_best == again.base.coherence
