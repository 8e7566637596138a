"""The sampler: rows are independent, greedy equals transformers, samples follow F."""

from dataclasses import replace

import pytest
import torch
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from steerheal.config import SamplingSettings
from steerheal.models.cache import fitting, roomy_cache
from steerheal.models.chat import prompt_ids
from steerheal.models.choose import Uniforms, choose, inverted
from steerheal.models.decode import Decoding
from steerheal.models.generate import Draw, generate
from steerheal.models.rows import Line
from steerheal.state.values import entered

import tiny

GREEDY = SamplingSettings(tokens=12, temperature=0)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_greedy_equals_transformers_for_every_family(family: str) -> None:
    chat = tiny.chat(family)
    prompts = ["a", "some longer prompt than the first", "mid size"]
    ours = generate(chat, [Draw(prompt) for prompt in prompts], GREEDY)
    for prompt, completion in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt_ids(chat, prompt)])
        theirs = chat.net.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=256,
            eos_token_id=list(chat.stop_ids()),
        )[0, ids.shape[1] :]
        assert list(completion.tokens) == theirs.tolist()


@pytest.mark.long
def test_rows_of_a_mixed_dose_batch_equal_the_same_rows_alone() -> None:
    chat = tiny.chat()
    settings = SamplingSettings(tokens=16, temperature=1.0, top_p=0.9)
    draws = [Draw(f"{'word ' * i}end", i, seed=i) for i in range(5)]
    vectors = {1: torch.randn(32, generator=torch.Generator().manual_seed(3))}
    states = tiny.steered(vectors, (0.0, 0.5, 1.0, 2.0, 4.0))
    with entered(chat, states) as reader:
        together = generate(reader, draws, settings)
        small = generate(reader, draws, settings.model_copy(update={"rows": 2}))
    alone = []
    for state, draw in zip(states, draws, strict=True):
        with state.entered(chat) as reader:
            alone += generate(reader, [replace(draw, state=0)], settings)
    assert together == alone == small
    assert together[0] == generate(chat, draws[:1], settings)[0]
    assert len({item.tokens for item in together}) == 5


def test_the_same_seed_gives_the_same_completion_and_another_seed_another() -> None:
    chat = tiny.chat()
    settings = SamplingSettings(tokens=20)
    one, two, three = generate(
        chat, [Draw("x", seed=1), Draw("x", seed=1), Draw("x", seed=2)], settings
    )
    assert one == two
    assert one.tokens != three.tokens


@pytest.mark.long
def test_finished_rows_stop_and_the_rest_goes_on() -> None:
    chat = tiny.chat()
    draws = [Draw("x", seed=i) for i in range(24)]
    done = generate(chat, draws, SamplingSettings(tokens=200, temperature=2.0, top_p=1.0))
    assert {item.ended for item in done} == {True, False} or all(item.ended for item in done)
    for item in done:
        stops = [i for i, token in enumerate(item.tokens) if token in chat.stop_ids()]
        assert stops == ([len(item.tokens) - 1] if item.ended else [])
    assert len({len(item.tokens) for item in done}) > 1


@pytest.mark.parametrize(
    "settings",
    [
        SamplingSettings(temperature=0.7, top_p=1.0),
        SamplingSettings(temperature=1.0, top_p=0.6),
        SamplingSettings(temperature=1.3, top_p=1.0, top_k=3),
        SamplingSettings(temperature=1.0, top_p=0.8, top_k=4),
    ],
)
def test_samples_follow_transformers_distribution(settings: SamplingSettings) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -3.0, 1.5]])
    scores = TemperatureLogitsWarper(settings.temperature)(None, logits)
    if settings.top_k:
        scores = TopKLogitsWarper(settings.top_k)(None, scores)
    if settings.top_p < 1:
        scores = TopPLogitsWarper(settings.top_p)(None, scores)
    expected = scores.softmax(-1)[0]
    random, rows = torch.Generator().manual_seed(0), 100_000
    chosen = choose(
        logits.expand(rows, -1),
        lambda which: torch.rand(len(which), generator=random, dtype=torch.float64),
        settings,
    )
    found = torch.bincount(chosen, minlength=7) / rows
    assert set(found.nonzero()[:, 0].tolist()) == set(expected.nonzero()[:, 0].tolist())
    spread = (expected * (1 - expected) / rows).sqrt()
    assert ((found - expected).abs() <= 4.5 * spread + 1e-9).all()


@pytest.mark.parametrize("size", [7, 256, 1000])
def test_a_grid_of_uniforms_gives_every_token_its_share(size: int) -> None:
    weights = torch.rand(1, size, generator=torch.Generator().manual_seed(1)).pow(4)
    weights[:, 3] = 0
    grid = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    found = torch.bincount(inverted(weights.expand(20_000, -1), grid), minlength=size) / 20_000
    torch.testing.assert_close(found, (weights / weights.sum())[0], atol=1e-4, rtol=0)


def test_uniforms_are_each_rows_own_and_never_end() -> None:
    both = Uniforms([5, 6], 2, torch.device("cpu"))
    first, second = torch.tensor([0]), torch.tensor([1])
    zero = [both.next(first).item() for _ in range(7)]
    one = [both.next(second).item() for _ in range(7)]
    plain = torch.Generator().manual_seed(5)
    alone = Uniforms([5], 2, torch.device("cpu"))
    assert zero == [alone.next(first).item() for _ in range(7)]
    assert zero[:2] == torch.rand(2, generator=plain, dtype=torch.float64).tolist()
    assert len({*zero, *one}) == 14


def test_a_state_that_was_not_entered_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="entered"):
        generate(tiny.chat(), [Draw("x", state=1)], GREEDY)


def test_the_roomy_cache_grows_selects_and_repeats_like_transformers_own() -> None:
    chat = tiny.chat()
    ids = torch.randint(0, 250, (3, 80), generator=torch.Generator().manual_seed(0))
    whole = chat.hidden(ids)
    cache = roomy_cache(chat)
    chat.hidden(ids[:, :10], past_key_values=cache, use_cache=True)
    chat.hidden(ids[:, 10:75], past_key_values=cache, use_cache=True)
    cache.batch_select_indices(torch.tensor([0, 2]))
    cache.batch_repeat_interleave(2)
    rest = chat.hidden(ids[[0, 0, 2, 2], 75:], past_key_values=cache, use_cache=True)
    torch.testing.assert_close(rest, whole[[0, 0, 2, 2], 75:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_a_long_read_in_pieces_gives_the_states_of_one_forward(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    chat = tiny.chat(kind)
    prompts = [list(range(1, 30)), list(range(40, 52)), list(range(5, 44))]
    lines = [Line.of(prompt) for prompt in prompts]
    whole = Decoding(chat, lines).start()
    monkeypatch.setattr("steerheal.models.decode.token_budget", lambda _: 12)
    pieces = Decoding(chat, lines).start()
    for prompt, one, other in zip(prompts, whole, pieces, strict=True):
        size = len(prompt)
        torch.testing.assert_close(other[-size:], one[-size:], atol=1e-5, rtol=1e-5)


def test_rows_follow_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = tiny.chat()
    assert fitting(chat, 64, 100) == 64
    # 4 layers of 2 · 2 heads · 8 floats for 164 positions, and 6 rows of 260 logits.
    row = 4 * (4 * 2 * 2 * 8 * 164 + 6 * 260)
    monkeypatch.setattr("steerheal.models.cache.free_bytes", lambda _: 10 * row + 1)
    assert fitting(chat, 64, 100) == 5
    monkeypatch.setattr("steerheal.models.cache.free_bytes", lambda _: 0)
    assert fitting(chat, 64, 100) == 1
