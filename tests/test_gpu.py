"""The same stages on a GPU in bfloat16; skipped where there is none."""

from pathlib import Path

import pytest
import torch

from steerheal.config import HealSettings, ModelSettings, SamplingSettings, VectorSettings
from steerheal.errors import UserError
from steerheal.heal.export import export_peft
from steerheal.heal.train import Healed, heal_student, training_pairs
from steerheal.measure import coherence, likelihood, vignettes
from steerheal.models import gpu_share
from steerheal.models.batch import free_bytes, shrinking
from steerheal.models.chat import prompt_ids
from steerheal.models.generate import Draw, generate
from steerheal.models.load import load, wrap
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states
from steerheal.pipeline.surroundings import size_of
from steerheal.state.fold import Gated, assert_alive, folded, merged
from steerheal.state.values import base, entered
from steerheal.steer.vector import extract

import tiny

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
    # What bitsandbytes says of layers as narrow as a tiny model's.
    pytest.mark.filterwarnings(
        r"ignore:inner dimension .\d+. is not aligned for fast kernel with blocksize=64:UserWarning"
    ),
]
PROMPTS = ["a", "some longer prompt", "mid size"]
DOSES = (0.0, 0.5, 1.0)


@pytest.fixture(scope="module", params=["llama", "gemma3", "qwen3"])
def chat(request: pytest.FixtureRequest) -> ChatModel:
    net = tiny.net(request.param).to("cuda", torch.bfloat16)
    return wrap(net, tiny.tokenizer(), name=f"tiny-{request.param}-gpu")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    folder = tiny.saved(tmp_path_factory.mktemp("packed"))
    return load(ModelSettings(name=str(folder), device="cuda", quantize="nf4"))


def logits(chat: ChatModel) -> torch.Tensor:
    with torch.no_grad():
        ids = torch.tensor([prompt_ids(chat, "say something")], device=chat.device)
        return chat.net(input_ids=ids).logits.float()


def healed(chat: ChatModel, method: str = "mean_difference") -> Healed:
    """Steers, samples and trains on what was written."""
    settings = VectorSettings(method=method, band=(0.3, 0.8))
    vector = extract(chat, tiny.persona(), PROMPTS, settings)
    draws = [Draw(prompt, i, i) for i, prompt in enumerate(PROMPTS)]
    with entered(chat, [base().steered(vector, dose) for dose in DOSES]) as reader:
        written = generate(reader, draws * 3, SamplingSettings(tokens=12))
    pairs = training_pairs(chat, written)
    settings = HealSettings(
        barrier="kl_rev", rank=4, rows=4, epochs=2, lr=5e-3, tau=0.0, held_out=0.2
    )
    done = heal_student(chat, pairs, continuation_states(chat, pairs), settings)
    assert done.log.outcome == "trained"
    assert done.log.steps[-1].divergence > 0
    return done


def test_every_stage_runs_and_undoes_itself(chat: ChatModel) -> None:
    before = logits(chat)
    done = healed(chat)
    assert torch.equal(logits(chat), before)
    history = [Gated(done.adapter)]
    with folded(chat, history):
        inside = logits(chat)
    with merged(chat, history):
        torch.testing.assert_close(logits(chat), inside, atol=0.3, rtol=0.1)
    assert not torch.equal(inside, before)
    assert torch.equal(logits(chat), before)


def test_instruments_read(chat: ChatModel) -> None:
    rows = likelihood.read(chat, vignettes.load("everyday")[:14])
    assert all(abs(sum(row.p) - 1) < 1e-3 for row in rows)
    canary = coherence.read(chat, ["Water is wet.", "Stone is soft."])
    assert all(0 <= row.p_ans_any <= 1 for row in canary)


def test_packed_weights_are_steered_healed_folded_read_and_never_written(
    packed: ChatModel, tmp_path: Path
) -> None:
    bits = {name: part.clone() for name, part in packed.net.state_dict().items()}
    assert packed.quantised and packed.net.model.layers[1].mlp.down_proj.weight.shape[1] == 1
    assert size_of(packed).packed == 30_720 and size_of(packed).parameters == 47_648
    done = healed(packed, "s_space")
    history = [Gated(done.adapter)]
    assert assert_alive(packed, done.adapter, prompt_ids(packed, "hi")).change > 0
    with folded(packed, history):
        rows = likelihood.read(packed, vignettes.load("everyday")[:7])
    assert all(abs(sum(row.p) - 1) < 1e-3 for row in rows)
    refused = pytest.raises(UserError, match="cannot be written into quantised weights")
    with refused, merged(packed, history):
        pass
    made = export_peft(packed, history, tmp_path / "peft", PROMPTS, fresh=True)
    assert made.difference <= 0.1 * made.scale
    after = packed.net.state_dict()
    assert all(torch.equal(after[name], part) for name, part in bits.items())


def test_a_worker_is_held_to_its_part_of_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = torch.cuda.get_device_properties(0).total_memory
    monkeypatch.setenv(gpu_share.SHARE, "0.05")
    try:
        chat = load(ModelSettings(name=str(tiny.saved(tmp_path)), device="cuda"))
        assert free_bytes(chat.device) <= 0.05 * whole
        taken = []

        def work(rows: list[int]) -> None:
            taken.append(len(rows))
            torch.empty(len(rows), whole // 64, dtype=torch.uint8, device="cuda")

        shrinking(list(range(8)), work)
        assert taken == [8, 4, 2, 2, 4, 2, 2]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_packed_weights_are_another_model(packed: ChatModel) -> None:
    whole = load(ModelSettings(name=packed.name, device="cuda"))
    again = load(ModelSettings(name=packed.name, device="cuda", quantize="nf4"))
    assert packed.fingerprint == again.fingerprint != whole.fingerprint


def test_a_gguf_file_is_packed_after_it_is_read() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    chat = load(ModelSettings(device="cuda", quantize="nf4"))
    assert chat.quantised and size_of(chat).packed > 1e8
    assert chat.origin.endswith("in nf4")
