"""Mixtures of experts: read as anything else, and what an adapter does not reach is said."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from steerheal.config import HealSettings, SamplingSettings
from steerheal.errors import UserError
from steerheal.heal.adapter import target_names
from steerheal.heal.reach import unreached
from steerheal.heal.train import heal_student, training_pairs
from steerheal.measure import likelihood, vignettes
from steerheal.models.chat import prompt_ids
from steerheal.models.generate import Draw, generate
from steerheal.models.load import wrap
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states
from steerheal.pipeline.surroundings import notes
from steerheal.state.adapter import Adapter
from steerheal.state.factors import Pair
from steerheal.state.fold import Gated, assert_alive, attached, folded
from steerheal.state.values import entered

import tiny

EXPERTS: dict[str, Any] = {**tiny.SIZES, "num_experts_per_tok": 2}
MOE: dict[str, Any] = {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 16}
ALL = HealSettings(band=(0.2, 0.8), rank=2, rows=3, epochs=1, lr=5e-3, held_out=0)


def made(family: str) -> PreTrainedModel:
    match family:
        case "qwen3":
            return Qwen3MoeForCausalLM(Qwen3MoeConfig(**MOE, head_dim=8, mlp_only_layers=[2]))
        case "qwen2":  # with a shared expert of linear layers
            config = Qwen2MoeConfig(**MOE, shared_expert_intermediate_size=24)
            return Qwen2MoeForCausalLM(config)
        case _:
            return MixtralForCausalLM(MixtralConfig(**EXPERTS, num_local_experts=4))


@pytest.fixture(params=["qwen3", "qwen2", "mixtral"])
def chat(request: pytest.FixtureRequest) -> ChatModel:
    net = made(request.param)
    for weight in net.parameters():
        if weight.ndim > 1:
            weight.data.mul_(4)
    return wrap(net, tiny.tokenizer(), name=f"tiny-{request.param}-moe")


def random_adapter(chat: ChatModel) -> Adapter:
    """An adapter of random factors on everything that can have one."""
    random = torch.Generator().manual_seed(5)
    pairs = {}
    for name in target_names(chat, ALL):
        out, inner = chat.net.get_parameter(f"{name}.weight").shape
        down, up = torch.randn(2, inner, generator=random), torch.randn(out, 2, generator=random)
        pairs[name] = Pair(0.2 * down, 0.2 * up)
    return Adapter(pairs, 1.0, 2)


def test_a_row_in_a_batch_is_the_row_alone(chat: ChatModel) -> None:
    draws = [Draw(f"{'word ' * i}end", i, i) for i in range(3)]
    settings = SamplingSettings(tokens=8)
    with entered(chat, tiny.steered({1: torch.ones(32)}, (0.0, 0.5, 1.0))) as reader:
        together = generate(reader, draws, settings)
        alone = [generate(reader, [draw], settings)[0] for draw in draws]
    assert together == alone
    asked = vignettes.load("everyday")[:3]
    rows = likelihood.read(chat, asked)
    for row, one in zip(rows, asked, strict=True):
        assert row.score == pytest.approx(likelihood.read(chat, [one])[0].score, abs=1e-3)


def test_an_adapter_beside_experts_is_trained_folded_and_undone(chat: ChatModel) -> None:
    said = generate(chat, [Draw(f"q{i}", seed=i) for i in range(6)], SamplingSettings(tokens=4))
    pairs = training_pairs(chat, said)
    healed = heal_student(chat, pairs, continuation_states(chat, pairs), ALL)
    assert healed.log.outcome == "trained"
    assert assert_alive(chat, healed.adapter, pairs[0][0]).change > 0
    before = continuation_states(chat, pairs)
    with folded(chat, [Gated(healed.adapter, 0.5)]):
        inside = continuation_states(chat, pairs)
    with attached(chat, [Gated(healed.adapter, 0.5)]):
        beside = continuation_states(chat, pairs)
    torch.testing.assert_close(torch.cat(inside), torch.cat(beside), atol=1e-4, rtol=1e-3)
    assert torch.equal(torch.cat(before), torch.cat(continuation_states(chat, pairs)))


# Per block of 32: attention 32·32·2 + 16·32·2 = 3072 in 4 matrices. Experts of qwen: gate and up
# in one of 4·32·32, down 4·32·16, a router 4·32: 6272 in 9. Of mixtral: 4·96·32, 4·32·48, 4·32:
# 18560 in 9. A shared expert is linear: 3·24·32 and its gate 32: 2336 in 4. A dense MLP: 3·48·32
# = 4608 in 3. The band holds blocks 1 and 2; block 2 of qwen3 is dense, and PEFT takes the names of
# its MLP for the experts of block 1.
REACHED = {
    "qwen3": (4 + 4, 4 + 4 + 3 + 9, 2 * 3072 / (2 * 3072 + 4608 + 6272)),
    "qwen2": (2 * 8, 2 * 17, (3072 + 2336) / (3072 + 2336 + 6272)),
    "mixtral": (2 * 4, 2 * 13, 3072 / (3072 + 18560)),
}


def test_what_has_no_adapter_is_counted_and_named(chat: ChatModel) -> None:
    some, whole, share = REACHED[chat.name.split("-")[1]]
    said = unreached(chat, ALL)
    assert f"reaches {some} of {whole} matrices" in said
    assert f"{100 * share:.0f} % of their weights" in said
    for name in ("mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate"):
        assert name in said
    assert said in notes(chat, ALL)


def test_nothing_is_said_where_everything_asked_for_has_an_adapter(chat: ChatModel) -> None:
    assert unreached(chat, ALL.model_copy(update={"targets": ("attention",)})) == ""
    for family in tiny.FAMILIES:
        assert unreached(tiny.chat(family), ALL) == ""


def test_rows_have_gates_of_their_own_beside_experts(chat: ChatModel) -> None:
    history = [Gated(random_adapter(chat))]
    rows = [prompt_ids(chat, "one"), prompt_ids(chat, "two")]
    ids = torch.tensor(rows)
    with torch.no_grad(), attached(chat, history) as gates:
        with gates.at(torch.tensor([1.0, 0.25])):
            both = chat.hidden(ids)
        with gates.at(torch.tensor([[1.0], [0.25]])):
            torch.testing.assert_close(chat.hidden(ids), both)
    for i, gate in enumerate((1.0, 0.25)):
        with torch.no_grad(), folded(chat, [Gated(history[0].adapter, gate)]):
            torch.testing.assert_close(chat.hidden(ids)[i], both[i], atol=1e-3, rtol=1e-3)


class Separate(nn.Module):
    """Experts that are linear layers of their own: each takes the positions that are its."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(2))

    def forward(self, states: Tensor) -> Tensor:
        flat = states.reshape(-1, 32)
        out = torch.zeros_like(flat)
        for k, expert in enumerate(self.experts):
            mine = (flat[:, 0] > 0) == bool(k)
            out[mine] = expert(flat[mine])
        return out.view_as(states)


def test_experts_that_are_linear_layers_are_adapted_at_one_gate_a_batch() -> None:
    net = tiny.net()
    for block in net.model.layers:
        block.mlp = Separate()
    chat = wrap(net, tiny.tokenizer(), name="tiny-separate")
    assert unreached(chat, ALL) == ""
    adapter = random_adapter(chat)
    assert any("experts.1" in name for name in adapter.pairs)
    ids = torch.tensor([prompt_ids(chat, "one"), prompt_ids(chat, "two")])
    with torch.no_grad(), folded(chat, [Gated(adapter, 0.5)]):
        wanted = chat.hidden(ids)
    with torch.no_grad(), attached(chat, [Gated(adapter)]) as gates:
        for same in (0.5, torch.tensor([0.5, 0.5]), torch.tensor([[0.5], [0.5]])):
            gates.set(same)
            torch.testing.assert_close(chat.hidden(ids), wanted, atol=1e-4, rtol=1e-3)
        gates.set(torch.tensor([0.5, 1.0]))
        with pytest.raises(UserError, match="is an expert"):
            chat.hidden(ids)
