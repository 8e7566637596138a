"""What a run needs: parameters, memory and time, by hand-worked numbers; too large is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from steerheal.config import ModelSettings, resolve
from steerheal.errors import UserError
from steerheal.models import size
from steerheal.models.load import load
from steerheal.pipeline import need
from steerheal.pipeline.surroundings import size_of

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
    assert size_of(chat)[1:] == (4, 32)


def test_memory_is_weights_and_what_a_run_keeps_beside_them() -> None:
    heal = resolve().heal  # 8 rows, a band of 0.6
    weights = 135e6 * 4
    trained = 8 * (40 + 64) * 30 * 576 * 20 * 4
    found = need.peak_bytes(SMALL, "float32", heal, 64)
    assert found == pytest.approx(0.7e9 + weights * 1.6 + trained)
    assert need.peak_bytes(SMALL, "bfloat16", heal, 64) == pytest.approx(
        0.7e9 + weights / 2 + trained
    )
    halved = heal.model_copy(update={"accumulate": 2})
    assert found - need.peak_bytes(SMALL, "float32", halved, 64) == pytest.approx(trained / 2)


def test_the_line_about_memory_names_what_is_short() -> None:
    said = need.memory_line(SMALL, "float32", resolve(), 64e9)
    assert said.startswith(
        "135 M parameters in float32: 0.5 GB of weights; a run needs about 2.7 GB"
    )
    assert said.endswith("64.0 GB are free")
    assert "lower heal.rows" in need.memory_line(SMALL, "float32", resolve(), 2e9)


def test_time_left_is_in_proportion_to_the_pace_and_grows_with_the_rounds() -> None:
    config = resolve("quick")
    once, each = need.rest_tokens(config, 56)
    base = need.reading_tokens(config.measure, 56)
    left = need.seconds_left(config, 56, 30.0)
    assert left == pytest.approx(30.0 * (once + config.rounds * each) / base)
    assert need.seconds_left(config, 56, 60.0) == pytest.approx(2 * left)
    more = config.model_copy(update={"rounds": config.rounds + 1})
    assert need.seconds_left(more, 56, 30.0) - left == pytest.approx(30.0 * each / base)


def test_a_curve_of_doses_is_counted_where_one_is_read() -> None:
    config = resolve("quick")
    # Seven levels with dose 0, twelve prompts, written once and read once.
    assert need.curve_tokens(config) == 7 * 12 * 2 * (40 + 48)
    given = config.model_copy(update={"dose": config.dose.model_copy(update={"start": 1.0})})
    assert need.curve_tokens(given) == 0
    gap = need.rest_tokens(config, 56)[1] - need.rest_tokens(given, 56)[1]
    assert gap == need.curve_tokens(config)


def test_a_reading_is_counted_by_hand() -> None:
    measure = resolve("quick").measure.model_copy(
        update={
            "prompts": 2, "tokens": 10, "long_prompts": 1, "long_tokens": 20, "json_prompts": 1,
            "held_out_pairs": 3, "control_prompts": 2, "control_tokens": 5, "tasks": 4,
            "task_tokens": 6,
        }
    )  # fmt: skip
    answers = 2 * (2 * (40 + 10) + 2 * (40 + 30 + 10))
    own = 3 * 2 * 2 * (40 + 30 + 10) + 2 * 2 * (40 + 5) + 4 * (40 + 6)
    plain = answers + 2 * (40 + 20) + (40 + 10) + own + 3_000
    assert need.reading_tokens(measure, 7) == plain + 7 * 110
    forced = measure.model_copy(update={"instrument": "forced_choice", "think": 5})
    assert need.reading_tokens(forced, 7) == plain + 7 * (110 * 2 + 5)


@pytest.mark.parametrize(
    ("seconds", "said"), [(20.0, "20 s"), (300.0, "5 min"), (7_200.0, "2.0 h")]
)
def test_the_line_about_time_reads_naturally(seconds: float, said: str) -> None:
    line = need.time_line(resolve("quick"), 56, seconds)
    assert line.startswith("about ") and "left for 1 round" in line and line.endswith(said)


def test_weights_that_do_not_fit_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.saved(tmp_path)
    monkeypatch.setattr("steerheal.models.load.free_bytes", lambda _: 1_000.0)
    monkeypatch.setattr("steerheal.models.load._open", lambda *_: pytest.fail("it was read"))
    with pytest.raises(UserError, match=r"weights in float32; 0\.0 GB .* --model.dtype bfloat16"):
        load(ModelSettings(name=str(folder)))
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF" * 1_000)
    with pytest.raises(UserError, match="of memory are free"):
        load(ModelSettings(name=str(file)))
