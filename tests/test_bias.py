"""A vector as biases: the same states as by the hook, also in a checkpoint that is loaded again."""

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from steerheal.errors import UserError
from steerheal.heal.export import export_bias
from steerheal.models.chat import prompt_ids
from steerheal.models.hooks import recording
from steerheal.models.model import ChatModel
from steerheal.state.bias import biased
from steerheal.state.fold import Gated, folded
from steerheal.state.vector import SteeringVector
from test_export import adapter

import tiny

VECTOR = SteeringVector({block: torch.randn(32, generator=torch.Generator()) for block in (1, 2)})


@torch.no_grad()
def states(chat: ChatModel, dose: float | None = None) -> list[Tensor]:
    """Every block's output, then the logits."""
    ids = torch.tensor([prompt_ids(chat, "How are you?")])
    with ExitStack() as stack:
        if dose is not None:
            stack.enter_context(VECTOR.applied(chat, dose))
        seen = stack.enter_context(recording(chat, [0, 1, 2, 3]))
        logits = chat.net(input_ids=ids).logits
    return [*(seen[block] for block in range(4)), logits]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "phi3"])
def test_a_bias_of_the_last_projection_gives_the_hooks_states(family: str) -> None:
    chat = tiny.chat(family)
    plain, steered = states(chat), states(chat, 1.5)
    assert (plain[1] - steered[1]).abs().max() > 0.1
    with biased(chat, VECTOR, 1.5):
        for ours, theirs in zip(states(chat), steered, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    for after, before in zip(states(chat), plain, strict=True):
        assert torch.equal(after, before)
    assert not [name for name, _ in chat.net.named_parameters() if name.endswith("down_proj.bias")]


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "olmo2", "phi"])
def test_blocks_of_which_it_is_not_the_same_are_refused_and_left_alone(family: str) -> None:
    chat = tiny.chat(family)
    names = [name for name, _ in chat.net.named_parameters()]
    with pytest.raises(UserError, match="is no bias in tiny-"), biased(chat, VECTOR):
        pytest.fail("it was taken for the same")
    assert [name for name, _ in chat.net.named_parameters()] == names


def test_a_vector_whose_push_depends_on_the_state_is_refused() -> None:
    other = SteeringVector(VECTOR.layers, "ablation")
    with pytest.raises(UserError, match="ablation is no bias"), biased(tiny.chat(), other):
        pass


def test_a_checkpoint_holds_the_history_and_the_vector(tmp_path: Path) -> None:
    chat = tiny.chat()
    history = [Gated(adapter(chat), 0.7)]
    made = export_bias(chat, history, VECTOR, tmp_path / "out", ["hi"], dose=1.5)
    assert made.difference < 1e-4 * made.scale
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.config.mlp_bias and not getattr(chat.net.config, "mlp_bias", False)
    held = again.model.layers[1].mlp
    assert torch.equal(held.down_proj.bias, 1.5 * VECTOR.layers[1])
    assert not held.up_proj.bias.any() and not again.model.layers[0].mlp.down_proj.bias.any()
    with folded(chat, history):
        expected = states(chat, 1.5)[-1]
    ids = torch.tensor([prompt_ids(chat, "How are you?")])
    with torch.no_grad():
        found = again(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_model_without_a_switch_for_it_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no mlp_bias"):
        export_bias(tiny.chat("qwen2"), [], VECTOR, tmp_path / "out", ["hi"])
    assert not (tmp_path / "out").exists()
