"""Weights in four bits: what is refused before anything is read, and what is never written into.

What bitsandbytes does is in test_gpu.py; here its marks are put on a model whose weights are whole.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from steerheal import extras
from steerheal.commands import export
from steerheal.config import ModelSettings, RunConfig, resolve
from steerheal.errors import UserError
from steerheal.heal.adapter import training
from steerheal.models import quantise, size
from steerheal.models.load import load
from steerheal.models.model import ChatModel
from steerheal.pipeline import need
from steerheal.state.fold import Gated, folded, merged
from test_export import adapter

import tiny

HEAL = resolve().heal


@pytest.fixture
def marked() -> ChatModel:
    chat = tiny.chat()
    chat.net.config.quantization_config = {"quant_method": "bitsandbytes"}
    return chat


def test_without_a_cuda_device_or_the_package_nothing_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = ModelSettings(name=str(tmp_path / "absent"), device="cpu", quantize="nf4")
    with pytest.raises(UserError, match="needs a CUDA device, and the model would run on cpu"):
        load(absent)
    monkeypatch.setitem(extras.EXTRAS, quantise.EXTRA, ("no_such_package",))
    with pytest.raises(UserError, match=r"pip install 'steerheal\[quantize\]'"):
        quantise.refuse_unable(torch.device("cuda"))


def test_a_history_runs_beside_packed_weights_in_float32_as_well(marked: ChatModel) -> None:
    before = {name: part.clone() for name, part in marked.net.state_dict().items()}
    history = [Gated(adapter(marked))]
    with folded(marked, history):
        assert all(
            torch.equal(marked.net.state_dict()[name], part) for name, part in before.items()
        )
    with pytest.raises(UserError, match="Use --format peft"), merged(marked, history):
        pytest.fail("it was written into them")


def test_pissa_is_refused_with_the_settings_and_where_it_would_start(marked: ChatModel) -> None:
    pissa = HEAL.model_copy(update={"adapter": "pissa"})
    with pytest.raises(ValueError, match="singular values of the weights, which model"):
        RunConfig(heal=pissa, model=ModelSettings(quantize="nf4"))
    refused = pytest.raises(UserError, match="which tiny-llama holds quantised")
    with refused, training(marked, pissa, seed=0):
        pass


@pytest.mark.parametrize("kind", export.MERGED)
def test_an_export_into_packed_weights_is_refused_before_a_model_is_loaded(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(model=ModelSettings(quantize="nf4"))
    monkeypatch.setattr(export, "read_run", lambda _: SimpleNamespace(settings=lambda _: config))
    with pytest.raises(UserError, match="Use peft or gguf-lora"):
        export.ExportCommand(run=str(tmp_path), format=kind).check()


def test_four_bits_count_as_such() -> None:
    # 64 weights: 32 bytes, one of a scale, and a 256th of a float32.
    assert size.weights_bytes(64, "bfloat16", 64) == pytest.approx(32 + 1 + 4 / 256)
    half = size.Size(128, 2, 8, packed=64)
    rest = need.Room(half, "float32", resolve()).rest(folded=True)
    assert rest == pytest.approx(need.PROCESS + 64 * 4 + 33 + 4 / 256)
    large = size.Size(128_000_000, 2, 8, packed=64_000_000)
    said = need.memory_line(large, "bfloat16", resolve(), 1e12)
    assert said.startswith("128 M parameters in bfloat16, 64 M of them in four bits: 0.2 GB")
    weight = torch.zeros(32, 1, dtype=torch.uint8)
    assert quantise.parameters_of(weight) == 32
    weight.quant_state = SimpleNamespace(shape=torch.Size((8, 8)))
    assert quantise.parameters_of(weight) == 64
