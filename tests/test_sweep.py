"""Calibration to equal KL, sweeps of doses, and the scan of bands."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from reports import dose_point
from steerheal.cli import main
from steerheal.config import CheckSettings, MeasureSettings, RunConfig, SamplingSettings, merge
from steerheal.measure import coherence, free, instruments, sweep, vignettes
from steerheal.measure.evaluate import evaluate
from steerheal.models.generate import Draw, generate
from steerheal.models.hooks import adding
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states, kl_between
from steerheal.pipeline.stage_store import Store
from steerheal.pipeline.stages import Stages
from steerheal.records import FOUNDATIONS, Completion, Reading, Sweep
from steerheal.report.front import bends, front, knee
from steerheal.report.scan import ScanBand, ScanPoint, ScanRecord, advised
from steerheal.state.values import base, entered
from steerheal.state.vector import SteeringVector
from steerheal.steer.calibrate import Probe, calibrate, probe, search
from steerheal.steer.equal import equal_kl, random_like
from steerheal.store import read_record
from steerheal.streams import EVALUATION, stream
from test_forced_choice import short
from test_loop import TINY, Silent

import tiny

ORDINARY = SamplingSettings(tokens=12)


def directions(scale: float = 1.0, seed: int = 0) -> dict[int, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {layer: scale * torch.randn(32, generator=source) for layer in (1, 2)}


def said(chat: ChatModel, count: int = 5) -> list[Completion]:
    draws = [Draw(f"prompt number {i}", seed=i) for i in range(count)]
    return generate(chat, draws, ORDINARY)


def p95_alone(
    chat: ChatModel, vectors: dict[int, torch.Tensor], texts: Sequence[Completion], dose: float
) -> float:
    """The same quantity the plain way: one text and one dose at a time."""
    divergences = []
    for text in texts:
        pairs = free.answer_pairs(chat, [text])
        plain = continuation_states(chat, pairs)[0]
        with adding(chat, vectors, dose):
            steered = continuation_states(chat, pairs)[0]
        divergences.append(kl_between(chat, steered, plain))
    return torch.cat(divergences).quantile(0.95).item()


def test_doses_in_one_batch_read_the_kl_of_one_dose_at_a_time() -> None:
    chat, vectors = tiny.chat(), directions()
    texts = said(chat)
    doses = (0.25, 2.0, 0.0, 1.0)
    found = probe(chat, tiny.steered(vectors, (1.0,))[0], texts, doses)
    assert [item.dose for item in found] == list(doses)
    assert found[2].kl == pytest.approx(0, abs=1e-6)
    for item in found:
        alone = p95_alone(chat, vectors, texts, item.dose)
        assert item.kl == pytest.approx(alone, rel=1e-2, abs=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("target", [0.03, 0.05, 0.1])
def test_calibration_hits_its_target_and_equals_a_plain_bisection(target: float) -> None:
    chat, vectors = tiny.chat(), directions(0.5)
    texts = said(chat)
    found = calibrate(chat, tiny.steered(vectors, (1.0,))[0], texts, target, tolerance=0.005)
    assert found.outcome == "found", found.words()
    assert found.kl == pytest.approx(target, rel=0.005)
    assert found.low <= found.dose <= found.high
    assert p95_alone(chat, vectors, texts, found.dose) == pytest.approx(target, rel=0.05)
    low, high = found.low, found.high
    for _ in range(20):
        middle = math.sqrt(low * high)
        below = p95_alone(chat, vectors, texts, middle) < target
        low, high = (middle, high) if below else (low, middle)
    assert found.dose == pytest.approx(low, rel=0.03)


def quadratic(scale: float, batches: list[int]) -> Callable[[Sequence[float]], list[Probe]]:
    def measure(fan: Sequence[float]) -> list[Probe]:
        batches.append(len(fan))
        return [Probe(dose=c, kl=scale * c**2) for c in fan]

    return measure


def test_a_smooth_curve_takes_two_batches() -> None:
    batches: list[int] = []
    found = search(quadratic(0.1, batches), 1.0)
    assert found.dose == pytest.approx(math.sqrt(10), rel=0.01)
    assert len(batches) == 2
    assert [item.dose for item in found.tried] == sorted(item.dose for item in found.tried)


def test_what_cannot_be_reached_is_said_and_never_loops() -> None:
    batches: list[int] = []
    weak = search(quadratic(1e-9, batches), 1.0)
    assert weak.outcome == "too weak" and math.isnan(weak.dose) and len(batches) == 1
    assert "16" in weak.words()
    strong = search(quadratic(1e9, batches), 1.0)
    assert strong.outcome == "too strong" and "already" in strong.words()
    broken = search(lambda fan: [Probe(dose=c, kl=math.nan) for c in fan], 1.0)
    assert broken.outcome == "not finite" and len(broken.tried) == 6

    def jump(fan: Sequence[float]) -> list[Probe]:
        return [Probe(dose=c, kl=0.1 if c < 1.234 else 9.0) for c in fan]

    assert search(jump, 1.0).outcome == "jumps"

    def collapse(fan: Sequence[float]) -> list[Probe]:
        return [Probe(dose=c, kl=0.1 * c if c < 1.2 else math.nan) for c in fan]

    assert search(collapse, 1.0).outcome == "not finite"


def test_a_curve_that_turns_back_is_met_at_its_first_crossing() -> None:
    def bump(fan: Sequence[float]) -> list[Probe]:
        return [Probe(dose=c, kl=2 * c if c < 1 else 2 / c) for c in fan]

    assert search(bump, 1.0).dose == pytest.approx(0.5, rel=0.03)


def test_a_zero_vector_is_too_weak_and_has_no_equal() -> None:
    chat, texts = tiny.chat(), said(tiny.chat(), 2)
    nothing = {1: torch.zeros(32)}
    (still,) = tiny.steered(nothing, (1.0,))
    assert calibrate(chat, still, texts).outcome == "too weak"
    found = equal_kl(chat, base(), still, texts, seed=0)
    assert found.vector is None and found.search is None and found.target == 0


def test_the_random_control_costs_what_the_vector_costs() -> None:
    chat, vectors = tiny.chat(), directions(0.5)
    texts = said(chat)
    for dose in (0.5, 2.0):
        (like,) = tiny.steered(vectors, (dose,))
        found = equal_kl(chat, base(), like, texts, seed=3)
        assert found.vector is not None
        ours = p95_alone(chat, vectors, texts, dose)
        assert p95_alone(chat, found.vector.layers, texts, 1.0) == pytest.approx(ours, rel=0.06)
        for layer, drawn in found.vector.layers.items():
            cosine = torch.cosine_similarity(drawn, vectors[layer], dim=0)
            assert abs(cosine.item()) < 0.6
    one, other = random_like(vectors, seed=3), random_like(vectors, seed=4)
    assert not torch.equal(one[1], other[1])
    assert torch.equal(one[1], random_like(vectors, seed=3)[1])
    assert one[2].norm() == pytest.approx(vectors[2].norm().item(), rel=1e-5)


# ── sweeps ──────────────────────────────────────────────────────────────────────────────────────

MEASURE = MeasureSettings(
    instrument="likelihood", per_foundation=2, prompts=3, tokens=6,
    long_prompts=0, json_prompts=0, held_out_pairs=0, control_prompts=0, tasks=0,
)  # fmt: skip
CHECK = CheckSettings(doses=(1.0, 0.5), prompts=3, per_foundation=1, tokens=6, base_texts=3)


def asking(measure: MeasureSettings = MEASURE) -> sweep.Asked:
    # An evaluation of a run of seed 0 draws from these.
    return sweep.asked(tiny.persona(), CHECK, measure, ORDINARY, stream(0, EVALUATION))


def swept(doses: Sequence[float]) -> Sweep:
    chat, vector = tiny.chat(), SteeringVector(directions(0.3))
    return sweep.sweep(chat, base().steered(vector, 1.0), doses, asking())


@pytest.mark.long
def test_a_sweep_reads_what_an_evaluation_of_each_dose_alone_reads() -> None:
    chat, vector = tiny.chat(), SteeringVector(directions(0.3))
    doses = (0.0, 0.5, 1.5)
    together = sweep.read(chat, base().steered(vector, 1.0), doses, asking())
    settings = MEASURE.model_copy(update={"per_foundation": 1})
    for dose, scores in zip(doses, together, strict=True):
        alone = evaluate(
            chat,
            "steered",
            base().steered(vector, dose),
            tiny.persona(),
            settings,
            sampling=ORDINARY,
            seed=0,
        )
        for one, other in zip(scores.vignettes, alone.vignettes, strict=True):
            assert one.id == other.id
            assert one.score == pytest.approx(other.score, abs=2e-3)
        for one, other in zip(scores.canary, alone.canary, strict=True):
            assert one.p_ans_any == pytest.approx(other.p_ans_any, rel=1e-3)
        for one, other in zip(scores.persona, alone.persona, strict=True):
            assert one.completion == other.completion
            assert one.logodds == pytest.approx(other.logodds, abs=1e-4)
            assert one.kl_to_base == pytest.approx(other.kl_to_base, abs=1e-3)


def test_forced_choice_is_swept_like_one_dose_at_a_time(tmp_path: Path) -> None:
    chat, vectors = tiny.chat(), directions(0.3)
    wording = tmp_path / "protocol.json"
    wording.write_text(short().model_dump_json())
    changes = {"instrument": "forced_choice", "think": 2, "protocol": str(wording)}
    settings = MEASURE.model_copy(update=changes)
    acts = vignettes.load("everyday")[:3]
    states = tiny.steered(vectors, (0.0, 1.0))
    with entered(chat, states) as reader:
        together = instruments.sweep(reader, acts, settings)
        canary = coherence.sweep(reader, ["A stone is hard.", "Ice is hot."])
    for state, found, slots in zip(states, together, canary, strict=True):
        with state.entered(chat) as reader:
            alone = instruments.read(reader, acts, settings)
            slot = coherence.read(reader, ["A stone is hard.", "Ice is hot."])
        for one, other in zip(found.rows, alone.rows, strict=True):
            assert one.score == pytest.approx(other.score, abs=2e-3)
        for one, other in zip(slots, slot, strict=True):
            assert (one.id, one.p_ans_any) == (other.id, pytest.approx(other.p_ans_any, rel=1e-3))


@pytest.mark.long
def test_dose_0_takes_what_an_evaluation_has_read_and_the_points_stay_the_same() -> None:
    chat, vector = tiny.chat(), SteeringVector(directions(0.3))
    settings = MEASURE.model_copy(update={"per_foundation": 2})
    known = evaluate(
        chat, "base", base(), tiny.persona(), settings,
        sampling=ORDINARY, seed=0,
    )  # fmt: skip
    rows: list[int] = []
    found = sweep.sweep(
        chat, base().steered(vector, 1.0), (1.0,), asking(), known=known, progress=rows.append
    )
    (one,), (other,) = found.points, swept((1.0,)).points
    assert sum(rows) == 2 * asking().rows - 7 - len(known.canary)
    assert one.summary.gain == other.summary.gain
    for name, reading in one.summary.delta_nats.items():
        assert reading.value == pytest.approx(other.summary.delta_nats[name].value, abs=1e-3)
    assert one.summary.coherence == pytest.approx(other.summary.coherence, rel=1e-3)


@pytest.mark.slow
def test_the_order_of_the_doses_changes_nothing() -> None:
    one, other = swept((0.5, 1.0, 2.0)), swept((2.0, 0.5, 1.0, 0.5))
    assert [point.dose for point in one.points] == [0.5, 1.0, 2.0]
    assert [point.dose for point in other.points] == [0.5, 1.0, 2.0]
    for a, b in zip(one.points, other.points, strict=True):
        assert a.summary.gain.value == pytest.approx(b.summary.gain.value, abs=1e-5)
        assert a.summary.coherence == pytest.approx(b.summary.coherence, rel=1e-4)
        assert a.summary.kl.value == pytest.approx(b.summary.kl.value, rel=1e-3)


def test_changes_are_paired_with_dose_0_and_carry_intervals() -> None:
    point = swept((1.0,)).points[0]
    assert point.n == 7 and not point.control
    gain = point.summary.gain
    assert gain.n == 3
    assert gain.low <= gain.value <= gain.high
    assert set(point.summary.delta_nats) == {
        "care", "fairness", "loyalty", "authority", "sanctity", "liberty", "social",
    }  # fmt: skip


def test_a_check_asks_for_no_vignette_that_the_evaluation_does_not_read() -> None:
    few = MEASURE.model_copy(update={"per_foundation": 1})
    check = CHECK.model_copy(update={"per_foundation": 8, "prompts": 500})
    ask = sweep.asked(tiny.persona(), check, few, ORDINARY, 0)
    assert len(ask.vignettes) == 7 and len(ask.prompts) == 4
    every = check.model_copy(update={"per_foundation": 0})
    assert len(sweep.asked(tiny.persona(), every, MEASURE, ORDINARY, 0).vignettes) == 14


def staged(runs: Path, name: str, **changes: object) -> tuple[Store, list[Sweep | None]]:
    """The stage of rounds 1 and 2 of a tiny run."""
    settings = {"check": CHECK.model_dump(), "measure": MEASURE.model_dump()}
    config = RunConfig.model_validate(merge(merge(TINY, settings), changes))
    chat = tiny.chat()
    store = Store(runs, name, notify=lambda _: None)
    stages = Stages(config, tiny.persona(), chat, store, Silent())
    zero = stages.evaluated(-1, "base", base())
    vector = stages.vector(0, base())
    return store, [stages.swept(number, base(), vector, zero) for number in (0, 1)]


@pytest.mark.long
def test_the_stage_reads_the_first_round_and_is_reused(tmp_path: Path) -> None:
    store, (first, second) = staged(tmp_path, "one")
    assert first is not None and second is None
    assert [(point.dose, point.control) for point in first.points] == [
        (0.5, False), (1.0, False), (1.0, True),
    ]  # fmt: skip
    # As text: what is NaN in both is the same.
    assert repr(read_record(tmp_path / "one" / "round-01" / "sweep.json", Sweep)) == repr(first)
    assert not store.marks[-1].reused
    store, (again, _) = staged(tmp_path, "two", rounds=7)
    assert repr(again) == repr(first) and store.marks[-1].reused
    store, _ = staged(tmp_path, "three", check={"doses": (0.25,)})
    assert not store.marks[-1].reused


def test_no_doses_switch_the_sweep_off(tmp_path: Path) -> None:
    store, found = staged(tmp_path, "off", check={"doses": ()})
    assert found == [None, None]
    assert [mark.name for mark in store.marks] == ["calibrate", "evaluate-base", "vector"]
    assert not json.loads(CheckSettings(doses=()).model_dump_json())["doses"]


# ── scans ───────────────────────────────────────────────────────────────────────────────────────

NAN = math.nan


def test_the_front_keeps_ties_and_never_a_nan() -> None:
    points = [(1.0, 0.0), (0.5, 1.0), (0.5, 1.0), (0.4, 0.9), (0.9, 0.9), (NAN, 9.0), (2.0, NAN)]
    assert front(points) == [1, 2, 4, 0]
    assert front([(0.3, 0.2)]) == [0]
    assert front([(1.0, 1.0), (1.0, 2.0), (0.5, 2.0)]) == [1]
    assert front([]) == [] and front([(NAN, 1.0)]) == []


def test_the_knee_is_farthest_above_the_chord_whatever_the_units() -> None:
    bend = [(1.0, 0.0), (0.95, 0.8), (0.5, 0.9), (0.0, 1.0), (0.2, 0.1)]
    assert knee(bend) == 1
    assert knee([(100 * x - 7, y / 1000) for x, y in bend]) == 1
    assert knee(bend[::-1]) == 3
    assert knee([*bend, (NAN, 50.0)]) == 1
    assert bends(bend) and bends(bend[::-1])


def test_without_a_bend_the_knee_is_the_end_with_the_most_trait() -> None:
    assert knee([]) is None and knee([(NAN, NAN)]) is None
    assert knee([(0.3, 0.2)]) == 0
    assert knee([(1.0, 0.1), (0.9, 0.7)]) == 1
    assert knee([(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]) == 2
    assert knee([(1.0, 0.0), (0.5, 0.1), (0.0, 1.0)]) == 2
    assert knee([(0.5, 0.5), (0.5, 0.5)]) == 0
    for flat in ([], [(0.3, 0.2)], [(1.0, 0.1), (0.9, 0.7)], [(1.0, 0.0), (0.5, 0.1), (0.0, 1.0)]):
        assert not bends(flat)


def scanned(*rows: tuple[float, float, float, float]) -> ScanRecord:
    """A scan of one band from (dose, trait, coherence, perplexity) rows; intervals are ± 0.05."""
    still = {name: Reading(value=0.0, low=-1.0, high=1.0, n=7) for name in FOUNDATIONS}
    points = [
        ScanPoint(
            band="0.4-0.6",
            multiple=dose,
            read=dose_point(
                dose,
                nats=still,
                gain=Reading(value=trait, low=trait - 0.05, high=trait + 0.05, n=9),
                coherence=coherent,
                perplexity=perplexity,
                kl=0.1,
                n=7,
            ),
        )
        for dose, trait, coherent, perplexity in rows
    ]
    band = ScanBand(band="0.4-0.6", blocks=(1, 2), coefficient=1.0, words="")
    return advised(
        ScanRecord(
            model="tiny", fingerprint="f", persona=tiny.persona().model_dump(mode="json"),
            settings={}, instrument="likelihood", base_perplexity=10.0, bands=(band,),
            points=tuple(points), against="coherence", words="",
        )
    )  # fmt: skip


def test_the_advice_keeps_to_what_moved_and_stayed_whole() -> None:
    record = scanned((0.5, 0.10, 1.0, 10.5), (1.0, 0.30, 0.97, 12.0), (2.0, 0.50, 0.2, 90.0))
    assert record.against == "coherence" and record.knee == "0.4-0.6 × 1"
    assert "--vector.band 0.4 0.6 --dose.start 1" in record.words
    assert [point.on_front for point in record.points] == [True, True, True]
    nothing = scanned((0.5, 0.01, 1.0, 10.5), (2.0, 0.50, 0.2, 90.0))
    assert not nothing.knee and "No dose is advised" in nothing.words


def test_where_answer_mass_is_flat_the_front_is_against_perplexity() -> None:
    record = scanned((0.5, 0.10, 1.0, 10.5), (1.0, 0.30, 0.999, 12.0), (2.0, 0.33, 1.01, 19.0))
    assert record.against == "fluency" and record.knee == "0.4-0.6 × 1"
    assert "hardly moves" in record.words


SMALL = [
    "--bands", "0.2-0.5", "0.4-0.9", "--doses", "1", "0.5", "--contexts", "3", "--prompts", "3",
    "--per-foundation", "1", "--tokens", "5", "--instrument", "likelihood",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.drawn
def test_a_scan_leaves_a_record_and_a_figure_and_minds_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tiny.saved(tmp_path), tmp_path / "scan"
    arguments = ["scan", "love", "--model", str(model), *SMALL, "--out", str(out)]
    main([*arguments, "--target-kl", "0"])
    said = capsys.readouterr().out
    record = read_record(out / "scan.json", ScanRecord)
    assert [(point.band, point.multiple) for point in record.points] == [
        ("0.2-0.5", 0.5), ("0.2-0.5", 1.0), ("0.4-0.9", 0.5), ("0.4-0.9", 1.0),
    ]  # fmt: skip
    assert [band.blocks for band in record.bands] == [(1,), (2, 3)]
    assert any(point.on_front for point in record.points)
    assert record.words in said and "scan.png" in said
    assert (out / "scan.png").stat().st_size > 10_000
    assert (out / "scan.svg").read_text().startswith("<?xml")
    before = (out / "scan.json").read_bytes()
    main([*arguments, "--target-kl", "0"])
    assert (out / "scan.json").read_bytes() == before
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "other settings" in " ".join(capsys.readouterr().err.split())


@pytest.mark.long
def test_a_band_that_cannot_reach_the_target_is_left_out_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tiny.saved(tmp_path), tmp_path / "scan"
    arguments = ["scan", "love", "--model", str(model), *SMALL, "--out", str(out)]
    main([*arguments, "--target-kl", "1000"])
    said = capsys.readouterr()
    record = read_record(out / "scan.json", ScanRecord)
    assert not record.points and math.isnan(record.bands[0].coefficient)
    assert "left out" in said.err and "No dose is advised" in said.out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--bands", "0.6-0.4"], "is not a band"),
        (["--bands", "middle"], "two rising fractions"),
        (["--bands"], "no band"),
        (["--doses", "0"], "--doses: given 0; allowed"),
        (["--doses"], "no dose"),
        (["--contexts", "5000"], "contexts are bundled"),
        (["--vignettes", "evryday"], "Perhaps you meant 'everyday'"),
        (["--target-kl", "-1"], "--target-kl: given -1; allowed"),
    ],
)
def test_a_wrong_scan_is_one_clear_message(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["scan", "love", *arguments])
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert expected in " ".join((said.err + said.out).split())
    assert not list(tmp_path.iterdir())
