"""What a run needs: memory and time stage by stage, by hand; what is too large is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from steerheal.cli import main
from steerheal.config import ModelSettings, RunConfig, SamplingSettings, merge, resolve
from steerheal.errors import UserError
from steerheal.measure import likelihood, vignettes
from steerheal.models import precision, size
from steerheal.models.cache import token_bytes
from steerheal.models.chat import common, prompt_ids, text_ids
from steerheal.models.generate import Draw
from steerheal.models.load import load
from steerheal.pipeline import forecast, need, pace
from steerheal.pipeline.stage_work import Counted, StageWork
from steerheal.pipeline.surroundings import size_of
from steerheal.pipeline.work import Passes, Work

import tiny

SMALL = size.Size(135_000_000, 30, 576)


def test_parameters_are_counted_in_the_headers(tmp_path: Path) -> None:
    assert size.parameters_in(tmp_path) is None
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7)}, tmp_path / "one.safetensors")
    save_file({"c": torch.zeros(2, 2, dtype=torch.float16)}, tmp_path / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert size.parameters_in(tmp_path) == 15 + 7 + 4
    (tmp_path / "two.safetensors").write_bytes(b"\xff" * 20)
    assert size.parameters_in(tmp_path) is None


def test_a_saved_model_has_the_parameters_of_the_loaded_one(tmp_path: Path) -> None:
    folder = tiny.saved(tmp_path)
    chat = load(ModelSettings(name=str(folder)))
    assert size.parameters_in(folder) == size_of(chat).parameters
    # Keys and values of two heads, eight wide, in four layers.
    assert size_of(chat)[1:] == (4, 32, 2 * 4 * 2 * 8 * 4, 0, 0, 0, 0) and token_bytes(chat) == 512


def test_memory_is_weights_and_what_a_run_keeps_beside_them() -> None:
    config = resolve()  # 8 rows of a heal, a band of 0.6; 48 rows that write, 128 tokens at most
    weights = 135e6 * 4
    trained = 8 * (40 + 64) * 30 * 576 * 20 * 4
    assert need.Room(SMALL, "float32", config).peak == pytest.approx(
        0.7e9 + weights * 1.6 + trained
    )
    assert need.Room(SMALL, "bfloat16", config).peak == pytest.approx(0.7e9 + weights / 2 + trained)
    heal = config.heal.model_copy(update={"accumulate": 2})
    halved = config.model_copy(update={"heal": heal})
    assert need.Room(SMALL, "float32", halved).trained == pytest.approx(trained / 2)
    wide = need.Room(SMALL._replace(cached=1_000_000), "bfloat16", config)
    assert wide.peak == pytest.approx(0.7e9 + weights / 2 + 48 * (40 + 128) * 1e6)


def test_a_stage_holds_what_it_does_and_what_is_folded() -> None:
    room = need.Room(SMALL._replace(cached=1_000), "float32", resolve())
    read = StageWork("read", 0, Work(read=1))
    assert room.of(read) == room.rest(folded=False) + 48 * 40 * 1_000
    assert room.of(replace(read, folded=True)) == pytest.approx(room.of(read) + 135e6 * 4 * 0.6)
    assert room.of(StageWork("heal", 0, Work(trained=1))) == room.rest(folded=False) + room.trained


def test_a_shared_model_counts_what_one_device_holds() -> None:
    # A quarter of 120 M in 30 blocks stays here, and two blocks are whole while they are read.
    shared = SMALL._replace(elsewhere=90_000_000, gathered=6_000_000)
    rest = need.Room(shared, "float32", resolve()).rest(folded=True)
    assert rest == need.PROCESS + (135e6 - 90e6 + 6e6) * 4
    said = need.memory_line(shared, "bfloat16", resolve(), 64e9)
    assert said.startswith("135 M parameters in bfloat16, 90 M of them on other devices: 0.1 GB")
    size.refuse_too_large("large", 140e9, "bfloat16", 80e9, shares=8)
    with pytest.raises(UserError, match="in bfloat16, shared out among 8 devices"):
        size.refuse_too_large("large", 140e9, "bfloat16", 16e9, shares=8)


def test_the_line_about_memory_names_what_is_short() -> None:
    said = need.memory_line(SMALL, "float32", resolve(), 64e9)
    assert said.startswith(
        "135 M parameters in float32: 0.5 GB of weights; a run needs about 2.7 GB"
    )
    assert said.endswith("64.0 GB are free")
    assert "lower heal.rows" in need.memory_line(SMALL, "float32", resolve(), 2e9)


def test_time_left_is_what_follows_the_base_at_the_pace_that_the_base_took() -> None:
    took = {"calibrate": 3.0, "evaluate-base": 10.0, "vector": 4.0, "heal": 16.0}
    rows = [
        need.StageCost(StageWork(name, 0, Work()), seconds, 0.0) for name, seconds in took.items()
    ]
    assert need.seconds_left(rows, 10.0) == pytest.approx(20.0)
    assert need.seconds_left(rows, 15.0) == pytest.approx(30.0)


@pytest.mark.parametrize(
    ("seconds", "said"), [(20.0, "20 s"), (300.0, "5 min"), (7_200.0, "2.0 h")]
)
def test_the_line_about_time_reads_naturally(seconds: float, said: str) -> None:
    rows = [need.StageCost(StageWork("evaluate-base", -1, Work()), 1.0, 0.0)]
    line = need.time_line(rows, 1, seconds)
    assert line.startswith("about ") and "left for 1 round," in line and line.endswith(said)


# ── what is counted ─────────────────────────────────────────────────────────────────────────────


def test_answers_are_counted_by_hand() -> None:
    chat, asked = tiny.chat(), ["ab", "abcd"]
    ids = [prompt_ids(chat, text) for text in asked]
    shared = common(*ids)
    own = sum(map(len, ids)) / 2 - shared
    passes = Passes(chat, rows=8)
    assert passes.own(asked) == own and shared >= 8
    # Twenty answers in batches of eight are three batches.
    assert passes.written(asked, 20, 5) == Work(read=20 * own, steps=3 * 5, sampled=100)
    assert passes.scored(asked, 20, 5, 2) == Work(read=20 * (own + 5), scored=200)


def test_vignettes_are_counted_with_their_reasons_or_their_orders() -> None:
    chat, passes = tiny.chat(), Passes(tiny.chat(), 8)
    settings = resolve("quick").measure.model_copy(update={"per_foundation": 1})
    chosen = vignettes.chosen(settings)
    read = passes.vignettes(chosen, settings)
    reasons = sum(len(text) for text in likelihood.REASONS.values())  # a token per byte
    assert read.sampled == 0
    assert read.scored == (len(chosen) + 6) * (reasons + len(text_ids(chat, likelihood.PREFILL)))
    forced = settings.model_copy(update={"instrument": "forced_choice", "think": 5})
    two, cyclic = (
        passes.vignettes(chosen, forced.model_copy(update={"orders": orders}))
        for orders in ("two", "cyclic")
    )
    assert two.sampled == len(chosen) * 2 * 5 and cyclic.sampled == len(chosen) * 7 * 5
    assert two.read < cyclic.read < 3.5 * two.read  # what the orders share is read once


@pytest.mark.slow
def test_more_of_a_setting_is_more_work_in_its_stages_alone() -> None:
    chat, persona, config = tiny.chat(), tiny.persona(), resolve("quick")

    def counted(**changes: object) -> dict[str, Work]:
        changed = RunConfig.model_validate(merge(config.model_dump(), dict(changes)))
        found = Counted(chat, persona, changed).stages()
        return {f"{one.round} {one.name}": one.work for one in found}

    usual = counted()
    for changes, grown in (
        ({"heal": {"epochs": 6}}, {"0 heal", "0 heal-control"}),
        ({"check": {"control": True}}, {"0 sweep"}),
        ({"vector": {"position": "mean"}}, {"0 vector"}),
        ({"filter": {"calibration_texts": 80}}, {"-1 calibrate"}),
    ):
        more = counted(**changes)
        assert {name for name in usual if more[name] != usual[name]} == grown, changes
    assert "0 curve" not in counted(dose={"start": 1.0})
    ends = [one.name for one in Counted(chat, persona, config).stages("check1")]
    assert ends[-1] == "sweep" and "harvest" not in ends


# ── the pace, and the plan ──────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_measuring_the_pace_leaves_the_model_and_every_seed_as_they_are() -> None:
    chat = tiny.chat()
    config = RunConfig.model_validate(
        {"sampling": {"tokens": 8, "rows": 8}, "heal": {"rows": 2, "rank": 2, "anchor": 1.0,
         "barrier": "kl_rev", "objective": "distill"}}
    )  # fmt: skip
    ids = torch.tensor([[1, 2, 3]])
    before, seed = chat.net(ids).logits, torch.random.get_rng_state()
    found = pace.measured(chat, config)
    assert torch.equal(chat.net(ids).logits, before)
    assert torch.equal(torch.random.get_rng_state(), seed)
    assert found.read > 0 and found.trained > 0 and min(found.step, found.sampled) >= 0
    assert found.seconds(Work(read=10, trained=2)) == 10 * found.read + 2 * found.trained


def test_a_batch_that_writes_costs_its_forwards_and_its_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = RunConfig.model_validate({"sampling": {"rows": 32}})
    clock = [0.0]

    def wrote(_chat: object, draws: list[Draw], settings: SamplingSettings) -> None:
        clock[0] += 7.0 + settings.tokens * (0.5 + 0.25 * len(draws))

    monkeypatch.setattr(pace, "generate", wrote)
    monkeypatch.setattr(pace.time, "perf_counter", lambda: clock[0])
    found = pace._writing(tiny.chat(), ["one", "two"], config)
    assert found == (0.5, 0.25)


def test_a_long_trial_of_instruments_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    chat, measure, axis = tiny.chat(), resolve("standard").measure, tiny.persona().axis
    slow = pace.Pace(1.0, 1.0, 1.0, 1.0, 1.0, 0.0)
    monkeypatch.setattr(forecast.auto, "resolve", lambda *_: pytest.fail("it was tried"))
    found = forecast.chosen(chat, measure, axis, slow)
    assert found.measure.instrument == "forced_choice" and "was not tried" in found.note
    named = measure.model_copy(update={"instrument": "likelihood"})
    assert forecast.chosen(chat, named, axis, slow) == (named, (), "")


@pytest.mark.slow
def test_a_plan_lists_the_stages_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tiny.saved(tmp_path / "model")
    small = ["--sampling.rows", "4", "--sampling.tokens", "8", "--measure.tokens", "8"]
    main(["run", "love", "--preset", "quick", "--plan", "--model", str(folder), *small])
    said = capsys.readouterr()
    for name in ("calibrate", "evaluate-base", "curve", "harvest", "heal", "test-healed", "total"):
        assert name in said.out
    assert "Assumed: answers as long" in said.out and "tokens/s read" in said.out
    assert "a run needs about" in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("able", [True, False])
def test_weights_that_do_not_fit_are_refused_before_they_are_read(
    able: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.saved(tmp_path)
    monkeypatch.setattr("steerheal.models.load.free_bytes", lambda _: 1_000.0)
    monkeypatch.setattr("steerheal.models.load._open", lambda *_: pytest.fail("it was read"))
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: able)
    with pytest.raises(UserError, match=r"weights in float32; 0\.0 GB .* --model.dtype bfloat16"):
        load(ModelSettings(name=str(folder)))
    monkeypatch.setattr(precision, "LARGE", 1)
    kind = "bfloat16" if able else "float32"
    with pytest.raises(UserError, match=f"weights in {kind}; "):
        load(ModelSettings(name=str(folder)))
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF" * 1_000)
    said = r"weights as its file holds them; 0\.0 GB of memory are free\. Take"
    with pytest.raises(UserError, match=said):
        load(ModelSettings(name=str(file)))
