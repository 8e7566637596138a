"""The same stages on a GPU in bfloat16; skipped where there is none."""

import pytest
import torch

from steerheal.config import HealSettings, SamplingSettings, VectorSettings
from steerheal.heal.train import heal_student, training_pairs
from steerheal.measure import coherence, likelihood, vignettes
from steerheal.models.chat import prompt_ids
from steerheal.models.generate import Draw, generate
from steerheal.models.load import wrap
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states
from steerheal.state.fold import Gated, folded, merged
from steerheal.state.values import base, entered
from steerheal.steer.vector import extract

import tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
PROMPTS = ["a", "some longer prompt", "mid size"]
DOSES = (0.0, 0.5, 1.0)


@pytest.fixture(scope="module", params=["llama", "gemma3", "qwen3"])
def chat(request: pytest.FixtureRequest) -> ChatModel:
    net = tiny.net(request.param).to("cuda", torch.bfloat16)
    return wrap(net, tiny.tokenizer(), name=f"tiny-{request.param}-gpu")


def logits(chat: ChatModel) -> torch.Tensor:
    with torch.no_grad():
        ids = torch.tensor([prompt_ids(chat, "say something")], device=chat.device)
        return chat.net(input_ids=ids).logits.float()


def test_every_stage_runs_and_undoes_itself(chat: ChatModel) -> None:
    before = logits(chat)
    persona = tiny.persona()
    vector = extract(chat, persona, PROMPTS, VectorSettings(band=(0.3, 0.8)))
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
