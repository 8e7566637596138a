"""A device without float64, as Apple's GPUs are: every stage of a run goes through on it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

import narrow
from steerheal.config import HealSettings, PushSettings, SamplingSettings, VectorSettings
from steerheal.heal.export import export_peft
from steerheal.heal.preference import rivals_of
from steerheal.heal.train import heal_student, training_pairs
from steerheal.measure import forced_choice, vignettes
from steerheal.models.chat import prompt_ids
from steerheal.models.choose import Uniforms, choose
from steerheal.models.generate import Draw, generate
from steerheal.models.load import wrap
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states
from steerheal.models.wide import home, wide
from steerheal.state.fold import Gated, assert_alive, folded, merged
from steerheal.state.values import base, entered
from steerheal.state.vector import SteeringVector
from steerheal.steer.equal import equal_kl
from steerheal.steer.vector import extract
from test_forced_choice import short
from test_loop import start

import tiny

pytestmark = pytest.mark.slow


@pytest.fixture
def chat() -> Iterator[ChatModel]:
    with narrow.driver():
        yield wrap(narrow.moved(tiny.net()), tiny.tokenizer(), name="tiny-llama")


def test_the_double_is_a_device_and_has_no_float64(chat: ChatModel) -> None:
    there = torch.ones(2, device=chat.device)
    for act in (
        lambda: there.double(),
        lambda: torch.zeros(2, dtype=torch.float64, device=chat.device),
        lambda: torch.zeros(2, dtype=torch.float64).to(chat.device),
        lambda: there.sum(dtype=torch.float64),
        lambda: torch.tensor([0.5], dtype=torch.float64, device=chat.device),
    ):
        with pytest.raises(TypeError, match="no float64"):
            act()
    with pytest.raises(RuntimeError, match="on the CPU and on the device"):
        _ = there + torch.ones(2)
    assert (there + 1).tolist() == [2.0, 2.0]


def test_what_needs_float64_goes_where_it_is() -> None:
    assert [home(torch.device(name)).type for name in ("cpu", "mps", "cuda")] == [
        "cpu", "cpu", "cuda",
    ]  # fmt: skip
    assert wide(torch.ones(2)).dtype == torch.float64


@pytest.mark.parametrize("changes", [{}, {"top_p": 1.0}, {"top_k": 20}, {"temperature": 0.0}])
def test_a_seed_draws_the_same_tokens_there(chat: ChatModel, changes: dict[str, Any]) -> None:
    settings = SamplingSettings(**{"tokens": 8, "temperature": 1.3} | changes)
    draws = [Draw(f"prompt {i}", seed=i) for i in range(4)]
    assert generate(chat, draws, settings) == generate(tiny.chat(), draws, settings)


def test_a_grid_of_uniforms_draws_what_float64_on_the_cpu_draws(chat: ChatModel) -> None:
    logits = torch.randn(64, 777, generator=torch.Generator().manual_seed(1)) * 3
    rows = torch.arange(64)
    drawn = []
    for device in (torch.device("cpu"), chat.device):
        uniforms = Uniforms(list(range(64)), 4, device)
        live = uniforms.among(rows.to(device))
        drawn.append(choose(logits.to(device), live, SamplingSettings(top_p=0.8)).tolist())
    assert drawn[0] == drawn[1]


@pytest.mark.rare
def test_a_whole_round_runs_there(chat: ChatModel, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(tiny, "chat", lambda: chat)
    record = start(
        tmp_path,
        rounds=1,
        push={"kl_budget": 1.0, "backtrack": True, "spike": 2.0},
        heal={"barrier": "kl_rev", "aggregate": "p95", "spectral": 0.01, "held_out": 0.2},
        vector={"contexts": 2, "band": (0.3, 0.8), "method": "s_space"},
        sampling={"tokens": 4, "rows": 4},
        dose={"want": 4, "minimum": 2, "batches": 2, "walks": 1},
        read_prompted=False,
        measure={
            "prompts": 2,
            "statements": 2,
            "tokens": 3,
            "long_prompts": 1,
            "long_tokens": 4,
            "held_out_pairs": 1,
            "control_prompts": 1,
            "tasks": 1,
        },
        check={"doses": (1.0,), "prompts": 2, "per_foundation": 1, "tokens": 3},
    )
    assert record.status == "finished" and record.rounds[0].outcome == "folded"


@pytest.mark.parametrize("method", ["pca", "contrastive_answers", "ablation", "cosine_gate"])
def test_every_kind_of_vector_is_made_and_used_there(chat: ChatModel, method: Any) -> None:
    settings = VectorSettings(method=method, answer_tokens=3, band=(0.3, 0.8))
    vector = extract(chat, tiny.persona(), ["a", "b c", "de"], settings)
    steered = base().steered(vector, 1.0)
    with entered(chat, [base(), steered, steered.acting_from(1)]) as reader:
        push = PushSettings(decay="linear")
        draws = [Draw("a", 1), Draw("b"), Draw("c", 2)]
        said = generate(reader, draws, SamplingSettings(tokens=4), push=push)
    found = equal_kl(chat, base(), steered, said, seed=0)
    assert found.target >= 0


@pytest.mark.parametrize(
    ("kind", "objective"),
    [("lora", "distill"), ("lora", "dpo"), ("rslora", "sft"), ("pissa", "sft")],
)
def test_every_kind_of_adapter_is_trained_folded_and_exported_there(
    chat: ChatModel, kind: Any, objective: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def there(net: Any, config: Any) -> Any:
        # PEFT makes factors on the CPU and gives them data on the device; the double cannot.
        with chat.device:
            return get_peft_model(net, config)

    monkeypatch.setattr("steerheal.heal.adapter.get_peft_model", there)
    said = generate(chat, [Draw(f"q{i}", seed=i) for i in range(6)], SamplingSettings(tokens=4))
    pairs = training_pairs(chat, said)
    vector = SteeringVector({1: torch.ones(32)})
    with base().steered(vector, 0.5).entered(chat) as reader:
        teacher = continuation_states(reader, pairs)
    settings = HealSettings(
        adapter=kind, objective=objective, barrier="kl_fwd", tau=0, rank=2, rows=3, epochs=1,
        lr=5e-3, spectral=0.01,
    )  # fmt: skip
    rivals, states = None, continuation_states(chat, pairs)
    if objective == "dpo":
        pairs, states, rivals = [*pairs, *pairs], [*states, *states], rivals_of(chat, pairs * 2)
    healed = heal_student(chat, pairs, states, settings, teacher=teacher, rivals=rivals)
    assert healed.log.outcome == "trained"
    alive = assert_alive(chat, healed.adapter, prompt_ids(chat, "a"))
    assert alive.layers > 0
    history = [Gated(healed.adapter, 0.5)]
    for door in (folded, merged):
        with door(chat, history):
            assert generate(chat, [Draw("a")], SamplingSettings(tokens=2))
    made = export_peft(chat, history, tmp_path / "out", ["a", "b"])
    assert made.difference < 1e-3 * max(1.0, made.scale)


def test_a_forced_choice_is_read_there(chat: ChatModel) -> None:
    rows = forced_choice.read(chat, vignettes.load("everyday")[:2], short(), think=2).rows
    twins = forced_choice.read(tiny.chat(), vignettes.load("everyday")[:2], short(), think=2).rows
    for row, twin in zip(rows, twins, strict=True):
        assert row.score == pytest.approx(twin.score, abs=1e-4)
