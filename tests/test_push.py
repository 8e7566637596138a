"""How the dose runs along a completion: every state is what plain decoding at the trace gives."""

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from steerheal.config import PushSettings, SamplingSettings
from steerheal.filter.scores import scored_by
from steerheal.models.cache import RoomyCache
from steerheal.models.chat import prompt_ids
from steerheal.models.generate import Draw, Written, generate, write
from steerheal.models.hooks import adding
from steerheal.models.model import ChatModel
from steerheal.models.push import repeats, share_at, spiking
from steerheal.records import Completion
from steerheal.state.values import entered

import tiny

DOSES = (0.0, 0.6, 1.2, 2.4, 1.0)
"""Of the states that every batch here is in."""
DRAWS = [Draw(f"{'word ' * i}end", i, seed=i) for i in range(4)]


def vector(scale: float = 1.0) -> dict[int, Tensor]:
    return {1: scale * torch.randn(32, generator=torch.Generator().manual_seed(3))}


def written(
    chat: ChatModel, push: PushSettings, settings: SamplingSettings, draws: list[Draw] = DRAWS
) -> Written:
    with entered(chat, tiny.steered(vector(), DOSES)) as reader:
        return write(reader, draws, settings, push=push, keep_states=True)


def replayed(chat: ChatModel, item: Completion, *, prompt_steered: bool = True) -> Tensor:
    """States of one row, token by token with transformers' own cache, at the recorded doses."""
    doses = item.doses or (item.dose,) * len(item.tokens)
    prompt, cache, states = prompt_ids(chat, item.prompt), DynamicCache(), []
    with torch.no_grad(), adding(chat, vector()) as dosed:
        dosed.set(item.dose if prompt_steered else 0.0)
        # The prompt's last token is read again after a rewind to the start, at that dose.
        chat.hidden(torch.tensor([prompt[:-1]]), past_key_values=cache, use_cache=True)
        for token, dose in zip((prompt[-1], *item.tokens[:-1]), doses, strict=True):
            dosed.set(dose)
            states.append(
                chat.hidden(torch.tensor([[token]]), past_key_values=cache, use_cache=True)[0, -1]
            )
    return torch.stack(states)


PUSHES = {
    "linear": PushSettings(decay="linear", decay_tokens=10),
    "exponential": PushSettings(decay="exponential", decay_tokens=6),
    "budget": PushSettings(kl_budget=0.3),
    "loops": PushSettings(backtrack=True),
    "spikes": PushSettings(backtrack=True, spike=0.5, decay="exponential"),
    "everything": PushSettings(backtrack=True, spike=1.0, kl_budget=1.0, decay="linear"),
    "answer": PushSettings(prompt=False),
    "answer taken back": PushSettings(prompt=False, backtrack=True, spike=0.5),
}


@pytest.mark.long
@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("name", PUSHES)
def test_every_state_is_what_plain_decoding_at_the_trace_gives(name: str, family: str) -> None:
    chat = tiny.chat(family)
    found = written(chat, PUSHES[name], SamplingSettings(tokens=40, temperature=0.8, top_p=0.9))
    for item, states in zip(found.completions, found.states, strict=True):
        wanted = replayed(chat, item, prompt_steered=PUSHES[name].prompt)
        torch.testing.assert_close(states, wanted, atol=2e-3, rtol=1e-3)
    assert set(found.completions[0].doses) == {0.0}


def test_a_prompt_that_is_not_steered_is_read_as_the_base_reads_it() -> None:
    chat, settings = tiny.chat(), SamplingSettings(tokens=3)
    found = written(chat, PUSHES["answer"], settings)
    plain = written(chat, PushSettings(), settings)
    for dose, item, own, other in zip(
        DOSES, found.completions, found.states, plain.states, strict=False
    ):
        wanted = replayed(chat, item, prompt_steered=False)
        torch.testing.assert_close(own, wanted, atol=2e-3, rtol=1e-3)
        assert item.doses == (dose,) * len(item.tokens)
        assert torch.allclose(own[0], other[0], atol=1e-4) == (dose == 0)


def test_the_dose_falls_as_it_says() -> None:
    chat, settings = tiny.chat(), SamplingSettings(tokens=20)
    for name in ("linear", "exponential"):
        push = PUSHES[name]
        for draw, item in zip(DRAWS, written(chat, push, settings).completions, strict=True):
            wanted = [DOSES[draw.state] * share_at(i, push) for i in range(len(item.tokens))]
            assert list(item.doses) == pytest.approx(wanted)
    assert share_at(10, PUSHES["linear"]) == share_at(99, PUSHES["linear"]) == 0
    assert share_at(6, PUSHES["exponential"]) == 0.5
    assert share_at(10**9, PushSettings()) == 1


@pytest.mark.long
@pytest.mark.parametrize("budget", [0.01, 0.05, 2.0])
def test_a_budget_holds_at_every_token_whose_dose_is_not_0(budget: float) -> None:
    chat = tiny.chat()
    push, settings = PushSettings(kl_budget=budget), SamplingSettings(tokens=30)
    found = written(chat, push, settings)
    scored = scored_by(chat, found.completions, tiny.persona(), found.states)
    lowered = 0
    for draw, item, of in zip(DRAWS, found.completions, scored, strict=True):
        assert max(item.doses) <= DOSES[draw.state] + 1e-6
        lowered += sum(dose < DOSES[draw.state] - 1e-6 for dose in item.doses)
        for dose, kl in zip(item.doses, of.kls, strict=True):
            assert kl <= budget + 1e-3 or dose == 0
    assert lowered > 0 or budget == 2.0


def test_a_wide_budget_changes_nothing() -> None:
    chat, settings = tiny.chat(), SamplingSettings(tokens=24)
    wide = written(chat, PushSettings(kl_budget=1e6), settings).completions
    plain = written(chat, PushSettings(), settings).completions
    assert [item.tokens for item in wide] == [item.tokens for item in plain]
    assert plain[0].doses == () and plain[0].rewinds == 0


def looping(tokens: int = 80) -> tuple[ChatModel, SamplingSettings, list[Draw]]:
    """A random model that falls into loops when it decodes greedily."""
    return tiny.chat(), SamplingSettings(tokens=tokens, temperature=0), [
        Draw(f"prompt {i}", 4, seed=i) for i in range(6)
    ]  # fmt: skip


@pytest.mark.long
def test_backtracking_takes_loops_back_and_lowers_the_dose() -> None:
    chat, settings, draws = looping()
    plain = written(chat, PushSettings(), settings, draws).completions
    push = PushSettings(backtrack=True, rewinds=3)
    back = written(chat, push, settings, draws).completions
    assert any(repeats(item.tokens) for item in plain)
    assert any(item.rewinds for item in back)
    for before, after in zip(plain, back, strict=True):
        assert after.rewinds <= 3
        steps = {round(dose, 6) for dose in after.doses}
        assert steps <= {0.5**k for k in range(after.rewinds + 1)}
        assert (after.rewinds == 0) == (before.tokens == after.tokens and not repeats(after.tokens))
        if after.rewinds < 3 and not after.ended:
            assert repeats(after.tokens) == 0


@pytest.mark.slow
def test_rows_that_are_taken_back_do_not_change_their_neighbours() -> None:
    chat, settings, draws = looping()
    push = PushSettings(backtrack=True, spike=1.0)
    together = written(chat, push, settings, draws).completions
    alone = [written(chat, push, settings, [draw]).completions[0] for draw in draws]
    assert together == alone


@pytest.mark.slow
def test_eight_hundred_tokens_with_rewinds_keep_the_cache_as_long_as_the_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat = tiny.chat()
    caches: list[RoomyCache] = []

    def caught(of: ChatModel) -> RoomyCache:
        caches.append(RoomyCache(of))
        return caches[-1]

    monkeypatch.setattr("steerheal.models.decode.roomy_cache", caught)
    monkeypatch.setattr(ChatModel, "stop_ids", lambda _: (10**6,))
    settings = SamplingSettings(tokens=800)
    push = PushSettings(backtrack=True, spike=0.05, rewinds=50, factor=0.9)
    (state,) = tiny.steered(vector(), (1.0,))
    with state.entered(chat) as reader:
        item = generate(reader, [Draw("go on and on", seed=4)], settings, push=push)[0]
    assert len(item.tokens) == 800 and item.rewinds > 0
    prompt = prompt_ids(chat, "go on and on")
    layer = caches[0].layers[0]  # a steered row and its twin
    assert layer.get_seq_length() == len(prompt) + 799
    assert layer.keys.untyped_storage().nbytes() <= 2 * 4 * 2 * 8 * (len(prompt) + 800 + 128)


def test_detectors() -> None:
    assert repeats([1, 2, 3] * 2) == 0
    assert repeats([9, 9, *([1, 2, 3] * 6)]) == 15
    assert repeats([7] * 13) == 12
    assert repeats([*([1, 2, 3] * 9), 4]) == 0
    assert repeats(list(range(40)) * 2) == 0
    assert spiking([0.0] * 8 + [4.0] * 8, 3.9) == 8
    assert spiking([4.0] * 7, 1.0) == 0
    assert spiking([0.0] * 4 + [4.0] * 8 + [0.0] * 4, 3.0) == 0
