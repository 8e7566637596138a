"""Who writes the text: the door to vLLM, against a stand-in with its types."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import test_loop
from steerheal import extras
from steerheal.config import ModelSettings, PushSettings, RunConfig, SamplingSettings
from steerheal.config.comparing import BUILT_IN, CompareSettings
from steerheal.errors import UserError
from steerheal.models.engines import biases, vllm
from steerheal.models.engines.engine import find
from steerheal.models.generate import Draw, Written, write
from steerheal.models.load import load
from steerheal.models.model import ChatModel
from steerheal.pipeline import comparing
from steerheal.pipeline.comparing import Plan
from steerheal.pipeline.run import refuse_engine
from steerheal.pipeline.stages import HARVEST
from steerheal.state.formulas import contrast
from steerheal.state.values import State, base, entered
from steerheal.state.vector import SteeringVector
from test_export import adapter

import standin_vllm
import tiny

VECTOR = SteeringVector(
    {block: 3 * torch.randn(32, generator=torch.Generator().manual_seed(1)) for block in (1, 2)}
)
OURS = SamplingSettings(tokens=5, temperature=0)
THEIRS = OURS.model_copy(update={"engine": "vllm"})


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    return load(ModelSettings(name=str(tiny.saved(tmp_path_factory.mktemp("model")))))


@pytest.fixture(autouse=True)
def llm(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[standin_vllm.LLM]]:
    yield standin_vllm.install(monkeypatch)
    vllm._loaded.forget()


def written(
    chat: ChatModel, states: list[State], settings: SamplingSettings, **how: Any
) -> Written:
    draws = [Draw("hello", i % len(states), i) for i in range(2 * len(states))]
    with entered(chat, states) as reader:
        return write(reader, draws, settings, keep_states=True, **how)


def test_every_state_without_a_mixture_writes_what_the_hooks_write(
    chat: ChatModel, llm: type[standin_vllm.LLM]
) -> None:
    healed = base().folded(adapter(chat), 0.7)
    states: list[State] = [
        base(),
        base().prompted("You are warm."),
        base().steered(VECTOR, 1.0),
        healed,
        healed.steered(VECTOR, -0.5),
        base().steered(VECTOR, 0.0),
    ]
    ours, theirs = (written(chat, states, how) for how in (OURS, THEIRS))
    assert theirs.completions == ours.completions
    assert len({said.tokens for said in ours.completions}) >= 4
    for one, other in zip(ours.states, theirs.states, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    # The base's checkpoint, and one for each of the two doses.
    assert [Path(load["model"]).name for load in llm.loads] == [
        "tiny-llama", "checkpoint", "checkpoint",
    ]  # fmt: skip
    assert [load.get("max_lora_rank") for load in llm.loads] == [8, None, 8]
    folder = Path(llm.loads[-1]["model"])
    assert (folder / biases.WHOLE).is_symlink() and folder.parent.is_dir()
    vllm._loaded.forget()
    assert not folder.parent.exists()


def test_a_load_serves_until_another_checkpoint_is_asked_for(
    chat: ChatModel, llm: type[standin_vllm.LLM]
) -> None:
    drawn = THEIRS.model_copy(update={"temperature": 1.0})
    first = written(chat, [base()], drawn)
    assert written(chat, [base()], drawn).completions == first.completions
    one, other = (said.tokens for said in first.completions)
    assert len(llm.loads) == 1 and one != other
    written(chat, [base().folded(adapter(chat))], THEIRS)
    written(chat, [base()], THEIRS)
    assert len(llm.loads) == 2


def test_a_checkpoint_in_several_files_keeps_its_index(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    tiny.net().save_pretrained(source, max_shard_size="60KB")
    assert (source / biases.INDEX).is_file()
    out.mkdir()
    biases.write_biased(source, out, VECTOR.layers, torch.float32)
    net = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        before, held = tiny.net(), net.model.layers[2].mlp
        assert torch.equal(held.down_proj.bias, VECTOR.layers[2]) and not held.up_proj.bias.any()
        assert not net.model.layers[0].mlp.down_proj.bias.any()
        assert torch.equal(net.lm_head.weight, before.lm_head.weight)
    with pytest.raises(UserError, match="mlp_bias of its own"):
        biases.write_biased(out, tmp_path, {}, torch.float32)


@pytest.mark.slow
def test_a_run_is_written_by_it_from_the_base_to_the_healed_student(
    chat: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llm: type[standin_vllm.LLM]
) -> None:
    monkeypatch.setattr(tiny, "chat", lambda: chat)
    short = {"rounds": 1, "control": False, "check": {"doses": ()}}
    record = test_loop.start(tmp_path, sampling={"engine": "vllm"}, **short)
    assert record.status == "finished" and record.rounds[0].outcome == "folded"
    assert record.settings(tmp_path).sampling.engine == "vllm"
    assert {Path(load["model"]).name for load in llm.loads} == {"tiny-llama", "checkpoint"}


def test_what_a_checkpoint_cannot_hold_is_refused(chat: ChatModel) -> None:
    mixed = contrast(base(), base().prompted("a"), base().prompted("b"), 0.5)
    ablated = base().steered(replace(VECTOR, kind="ablation"), 1.0)
    for state, why in (
        (mixed, "several forwards in the same batch"),
        (ablated, "kind ablation does depends on the hidden state"),
        (base().steered(VECTOR, 1.0).acting_from(1), "only from a token of the answer on"),
    ):
        with pytest.raises(UserError, match=f"{why}.*Use --engine transformers"):
            written(chat, [state], THEIRS)
    with pytest.raises(UserError, match="at a constant dose"):
        written(chat, [base()], THEIRS, push=PushSettings(kl_budget=0.1))
    with pytest.raises(UserError, match="of a GGUF file"):
        written(replace(chat, origin="a file's weights"), [base()], THEIRS)
    other = tiny.chat("qwen2")
    with pytest.raises(UserError, match="not into one of type 'qwen2'"):
        find("vllm").refuse_model(other)
    find("vllm").refuse_model(chat)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"model": {"name": ""}}, "of a GGUF file"),
        ({"model": {"quantize": "nf4"}}, "of quantised weights"),
        ({"push": {"decay": "linear"}}, "has no decay"),
        ({"teacher": "antisymmetric"}, "teacher antisymmetric, whose logits"),
        ({"vector": {"method": "cosine_gate"}}, "not simply added"),
    ],
)
def test_a_run_that_it_could_not_write_is_refused_by_its_settings(
    settings: dict[str, Any], why: str
) -> None:
    whole = {"model": {"name": "owner/model"}, "sampling": {"engine": "vllm"}} | settings
    if "model" in settings:
        whole["model"] = {"name": "owner/model"} | settings["model"]
    with pytest.raises(UserError, match=why):
        refuse_engine(RunConfig.model_validate(whole))


def test_a_comparison_with_an_arm_that_it_could_not_write_is_refused(tmp_path: Path) -> None:
    config = RunConfig(model=ModelSettings(name="owner/model"), sampling=THEIRS)
    plan = Plan(tmp_path, config, CompareSettings(), BUILT_IN, tiny.persona(), "")
    with pytest.raises(UserError, match="Arm contrast is made of several forwards"):
        comparing._refuse_unfit(plan)
    others = tuple(arm for arm in BUILT_IN if arm.name != "contrast")
    comparing._refuse_unfit(replace(plan, arms=others))


def test_without_the_package_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.EXTRAS, "vllm", ("no_such_package",))
    with pytest.raises(UserError, match=r"pip install 'steerheal\[vllm\]'"):
        refuse_engine(RunConfig(sampling=THEIRS))


def test_text_of_another_engine_is_another_stage(chat: ChatModel) -> None:
    run = RunConfig()
    keys = {
        HARVEST.of(
            chat, base(), tiny.persona(), None, dose=run.dose, push=run.push, sampling=how,
            rules=run.filter, seed=0,
        ).key
        for how in (OURS, THEIRS)
    }  # fmt: skip
    assert len(keys) == 2
