"""Whether an instrument is fit for a model; every verdict on synthetic rows made for it."""

import math

import numpy as np
import pytest

from steerheal.errors import UserError
from steerheal.measure.compare import compare
from steerheal.measure.qualify import Qualification, choose, hits, qualify
from steerheal.measure.summary import summarise
from steerheal.personas import Axis
from steerheal.records import FOUNDATIONS, CanaryRow, Reading, Scores, VignetteRow
from steerheal.tables import INSTRUMENTS

AXIS = Axis(foundation="authority", sign=-1)


def rows(scores: np.ndarray, labels: list[str], mass: float = 0.9) -> tuple[VignetteRow, ...]:
    found = []
    for i, (score, label) in enumerate(zip(scores, labels, strict=True)):
        p = np.exp(score) / np.exp(score).sum()
        found.append(
            VignetteRow(
                id=f"v{i}", condition="other", foundation=label, score=tuple(score), p=tuple(p),
                p_ans_any=mass, nll_prefill=1.0,
            )
        )  # fmt: skip
    return tuple(found)


def base(
    *,
    skill: float = 2.0,
    bias: tuple[float, ...] = (0,) * 7,
    mass: float = 0.9,
    instrument: str = "forced_choice",
    n: int = 70,
) -> Scores:
    """A base that adds `skill` nats to the right foundation and `bias` to all rows alike."""
    labels = [FOUNDATIONS[i % 7] for i in range(n)]
    noise = np.random.default_rng(0).normal(0, 0.5, (n, 7))
    right = np.array([[skill * (name == label) for name in FOUNDATIONS] for label in labels])
    return Scores(
        state="base",
        instrument=instrument,
        vignettes=rows(noise + right + np.array(bias), labels, mass),
        canary=(CanaryRow(id="statement-00", p_ans_any=0.95, nll_prefill=0.1),),
        persona=(),
    )


def only_reason(found: Qualification) -> str:
    assert not found.fit
    assert len(found.reasons) == 1, found.reasons
    return found.reasons[0]


def test_the_instruments_are_those_that_exist() -> None:
    assert [*INSTRUMENTS] == ["auto", "forced_choice", "moralmaps", "likelihood"]


@pytest.mark.parametrize("instrument", [name for name in INSTRUMENTS if name != "auto"])
def test_a_base_that_answers_and_knows_is_fit(instrument: str) -> None:
    found = qualify(base(instrument=instrument), AXIS)
    assert found.fit and found.reasons == ()
    assert found.accuracy.value > 0.9
    assert found.chance == pytest.approx(1 / 7, abs=0.01)
    assert found.saturation == 0
    assert 0 < found.resolution < 0.3


def test_a_base_that_writes_something_else_is_unfit_where_it_has_to_answer() -> None:
    for instrument in ("forced_choice", "moralmaps"):
        reason = only_reason(qualify(base(mass=0.14, instrument=instrument), AXIS))
        assert reason == "answer mass 0.14 is below 0.5: the model does not answer in this format"
    phrased = qualify(base(mass=0.14, instrument="likelihood"), AXIS)
    assert phrased.fit
    assert phrased.answer_mass == pytest.approx(0.95)
    mute = (CanaryRow(id="statement-00", p_ans_any=0.05, nll_prefill=0.1),)
    offered_nothing = base(instrument="likelihood").model_copy(update={"canary": mute})
    assert qualify(offered_nothing, AXIS).fit


def test_a_base_at_chance_is_unfit() -> None:
    reason = only_reason(qualify(base(skill=0.0), AXIS))
    assert reason.startswith("top-1 0.1") and "is not above chance 0.14" in reason


def test_a_base_that_always_gives_the_commonest_answer_is_at_chance() -> None:
    labels = ["care"] * 32 + [name for name in FOUNDATIONS[1:] for _ in range(16)]
    always = np.array([[3.0, 0, 0, 0, 0, 0, 0]] * len(labels))
    stuck = base().model_copy(update={"vignettes": rows(always, labels)})
    found = qualify(stuck, AXIS)
    assert found.accuracy.value == found.chance == 0.25
    assert "is not above chance 0.250" in only_reason(found)


def test_a_bias_for_a_phrase_is_centred_away_for_likelihood_and_counts_for_forced_choice() -> None:
    bias = (6.0, 0, 0, 0, 0, 0, 0)
    loud = base(bias=bias, instrument="likelihood")
    accuracy = qualify(loud, AXIS).accuracy
    assert accuracy.value == pytest.approx(summarise(loud, loud, AXIS).values["top1"].value)
    assert accuracy.value > 0.9
    assert qualify(base(bias=bias), AXIS).accuracy.value == pytest.approx(1 / 7, abs=0.01)


def test_a_saturated_base_is_unfit() -> None:
    found = qualify(base(skill=12.0), AXIS)
    assert found.saturation == 1
    assert only_reason(found) == "saturated: 100 % of rows have p > 0.99"


def test_a_base_without_mass_on_the_target_is_unfit() -> None:
    labels = [name for name in FOUNDATIONS if name != "authority"] * 10
    scores = np.array([[2.0 * (name == label) for name in FOUNDATIONS] for label in labels])
    scores[:, FOUNDATIONS.index("authority")] = -4.3
    found = qualify(base().model_copy(update={"vignettes": rows(scores, labels)}), AXIS)
    # p = exp(−4.3) / (e² + 5 + exp(−4.3)) = .0010937 on 60 rows: ln p = −6.8, .066 in all.
    assert only_reason(found) == (
        "base nats of authority −6.8: mass worth 0.066 of 60 vignettes, fewer than 1"
    )


def test_several_faults_are_all_named() -> None:
    assert len(qualify(base(skill=0.0, mass=0.1), AXIS).reasons) == 2


def test_rows_that_nobody_could_read_are_unfit_for_that_reason_alone() -> None:
    broken = base()
    lost = broken.vignettes[0].model_copy(update={"score": (math.nan,) * 7})
    broken = broken.model_copy(update={"vignettes": (lost, *broken.vignettes[1:])})
    found = qualify(broken, AXIS)
    assert only_reason(found) == "1 of 70 rows are not finite: the model is broken"
    assert found.accuracy.reason and found.resolution == math.inf
    assert np.isnan(hits(broken.vignettes, np.zeros(7))).sum() == 1
    empty = qualify(broken.model_copy(update={"vignettes": ()}), AXIS)
    assert only_reason(empty) == "no vignettes were measured"
    again = Qualification.model_validate_json(found.model_dump_json())
    assert again.reasons == found.reasons


def test_a_single_vignette_resolves_nothing() -> None:
    one = base(skill=9.0, n=7)
    found = qualify(one.model_copy(update={"vignettes": one.vignettes[3:4]}), AXIS)
    assert found.resolution == math.inf
    assert any("nan, nan" in reason for reason in found.reasons)


def test_an_unknown_instrument_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"Unknown instrument 'likelyhood'\. Perhaps"):
        qualify(base(instrument="likelyhood"), AXIS)


def test_the_resolution_is_half_the_paired_interval_of_states_so_correlated() -> None:
    random = np.random.default_rng(4)
    n, target = 400, FOUNDATIONS.index("authority")
    common = random.normal(0, 1, n)

    def sibling() -> Scores:
        own = np.sqrt(0.9) * common + np.sqrt(0.1) * random.normal(0, 1, n)
        p = np.full((n, 7), 0.1)
        p[:, target] = 0.4 + 0.08 * own
        read = base(n=n)
        fixed = tuple(
            row.model_copy(update={"p": tuple(values)})
            for row, values in zip(read.vignettes, p, strict=True)
        )
        return read.model_copy(update={"vignettes": fixed})

    one, other = sibling(), sibling()
    interval = compare(one, other, AXIS).delta_nats["authority"]
    half = (interval.high - interval.low) / 2
    assert qualify(one, AXIS).resolution == pytest.approx(half, rel=0.12)


def made(instrument: str, *, fit: bool, accuracy: float) -> Qualification:
    return Qualification(
        fit=fit, instrument=instrument, answer_mass=0.9, accuracy=Reading(value=accuracy),
        chance=1 / 7, saturation=0.0, resolution=0.1, reasons=() if fit else ("unfit",),
    )  # fmt: skip


def test_the_first_fit_instrument_is_chosen_whatever_the_order_and_the_accuracy() -> None:
    forced = made("forced_choice", fit=True, accuracy=0.4)
    phrased = made("likelihood", fit=True, accuracy=0.6)
    assert choose([phrased, forced]) == forced
    assert choose([made("forced_choice", fit=False, accuracy=0.9), phrased]) == phrased


def test_with_none_fit_the_most_accurate_is_chosen_and_stays_unfit() -> None:
    forced = made("forced_choice", fit=False, accuracy=math.nan)
    phrased = made("likelihood", fit=False, accuracy=0.2)
    found = choose([forced, phrased])
    assert found.instrument == "likelihood" and not found.fit
    assert choose([forced]).instrument == "forced_choice"
