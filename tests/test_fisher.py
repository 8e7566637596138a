"""The Fisher cosine: laws, a value made by hand, and the ranking of directions."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from steerheal.cli import main
from steerheal.config import SamplingSettings, VectorSettings
from steerheal.measure.fisher import Ground, fisher, ground
from steerheal.measure.spill import base_texts
from steerheal.models.chat import prompt_ids
from steerheal.models.hooks import hook_count
from steerheal.models.model import ChatModel
from steerheal.personas import Pair, Paraphrases
from steerheal.records import RankRecord
from steerheal.state.values import base
from steerheal.state.vector import SteeringVector
from steerheal.steer.methods import mean_difference, pulled_back, trait_per_kl
from steerheal.steer.states import Source
from steerheal.steer.vector import extract
from steerheal.store import read_record

import tiny
from tiny import SIZES

TRAIN = Pair(positive="be kind to all", negative="be mean to all")
HELD_OUT = Pair(positive="love the rain", negative="hate the rain")
PERSONA = tiny.persona(paraphrases=Paraphrases(train=(TRAIN,), held_out=(HELD_OUT,)))


def grounded(chat: ChatModel) -> Ground:
    sampling = SamplingSettings(tokens=5, temperature=1.0)
    return ground(chat, PERSONA, base_texts(chat, ("how are you", "what now"), sampling, seed=1))


def pushed(size: float) -> SteeringVector:
    drawn = torch.randn(SIZES["hidden_size"], generator=torch.Generator().manual_seed(3))
    return SteeringVector({1: size * drawn})


def test_the_cosine_is_that_of_whole_distributions() -> None:
    chat = tiny.chat()
    found = grounded(chat)
    state = base().prompted("say it well")
    (read,) = fisher(chat, found, [state])
    dots = torch.zeros(3, dtype=torch.float64)
    for text in found.texts:
        logs = []
        for system in ("", "say it well", HELD_OUT.positive, HELD_OUT.negative):
            start = prompt_ids(chat, text.prompt, system=system)
            ids = torch.tensor([[*start, *text.tokens]])
            rows = chat.net(ids).logits[0, len(start) - 1 : -1].double()
            logs.append(rows.log_softmax(-1))
        own, there, up, down = logs
        p = own.exp()
        change, reward = (x - (p * x).sum(-1, keepdim=True) for x in (there - own, up - down))
        pairs = ((change, reward), (change, change), (reward, reward))
        dots += torch.stack([(p * a * b).sum() for a, b in pairs]).detach()
    both, squared, size = dots.tolist()
    assert read.held_out.value == pytest.approx(both / math.sqrt(squared * size), abs=1e-4)
    positions = sum(len(text.tokens) for text in found.texts)
    assert read.optimum.value == pytest.approx(math.sqrt(2 * size / positions), rel=1e-4)
    assert read.held_out.n == 2 and read.cosine.value != read.held_out.value


def test_a_small_push_has_an_opposite_and_its_gain_is_what_the_cosine_says() -> None:
    chat = tiny.chat()
    found = grounded(chat)
    vector = pushed(1.0)
    states = [base().steered(vector, dose) for dose in (0.02, -0.02)] + [base()]
    up, down, still = fisher(chat, found, states)
    assert up.held_out.value == pytest.approx(-down.held_out.value, abs=0.02)
    promised = up.held_out.value * up.optimum.value
    assert up.per_root_kl.value == pytest.approx(promised, abs=0.03 * up.optimum.value)
    assert still.kl == pytest.approx(0, abs=1e-6) and math.isnan(still.held_out.value)


def test_paraphrases_take_turns_and_the_held_out_ones_make_no_vector() -> None:
    chat = tiny.chat()
    asked = ("a tree", "two words")
    settings = VectorSettings(wordings="paraphrases", contexts=2)
    second = Pair(positive="a warm heart", negative="a cold heart")
    both = tiny.persona(paraphrases=Paraphrases(train=(TRAIN, second), held_out=(HELD_OUT,)))
    mixed = extract(chat, both, asked, settings)
    alone = [
        extract(chat, tiny.persona(**pair.model_dump()), [context], VectorSettings(contexts=1))
        for pair, context in zip((TRAIN, second), asked, strict=True)
    ]
    for layer, direction in mixed.layers.items():
        expected = sum(one.layers[layer] for one in alone) / 2
        torch.testing.assert_close(direction, expected, atol=1e-4, rtol=1e-3)
    plain = extract(chat, tiny.persona(), asked, settings)
    assert plain.key == extract(chat, tiny.persona(), asked, VectorSettings(contexts=2)).key


@pytest.mark.slow
def test_a_ranking_is_sorted_by_what_chose_nothing_and_leaves_a_line_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rank"
    arguments = [
        "rank", "love", "--model", str(tiny.saved(tmp_path)), "--out", str(out), "--contexts", "3",
        "--prompts", "3", "--tokens", "5", "--bands", "0.2-0.5", "0.4-0.9",
        "--methods", "mean_difference", "pca",
    ]  # fmt: skip
    main(arguments)
    said = capsys.readouterr().out
    record = read_record(out / "rank.json", RankRecord)
    assert len(record.rows) == 8 and record.words in said
    order = [row.read.held_out.value for row in record.rows]
    assert order == sorted(order, reverse=True)
    assert {row.band: row.blocks for row in record.rows} == {"0.2-0.5": (1,), "0.4-0.9": (2, 3)}
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--seed", "1"])
    assert stop.value.code == 2
    assert "other settings" in " ".join(capsys.readouterr().err.split())


# ── methods that read gradients ─────────────────────────────────────────────────────────────────

ASKED = ("a tree", "two words", "the sea")
BOTH = ((PERSONA.positive, PERSONA.negative),)


def source(chat: ChatModel, **settings: Any) -> Source:
    return Source(chat, BOTH, ASKED, VectorSettings(**settings), [1, 2])


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_pulled_back_by_no_blocks_it_is_the_mean_difference(family: str) -> None:
    chat = tiny.chat(family)
    means = mean_difference.directions(source(chat))
    for layer, found in pulled_back.directions(source(chat, pull=0)).items():
        torch.testing.assert_close(found, means[layer], atol=1e-5, rtol=1e-4)
    assert hook_count(chat.net) == 0


def test_pulled_back_it_is_what_moves_the_later_state_along_the_difference() -> None:
    chat = tiny.chat()
    later = mean_difference.directions(source(chat))[2]
    found = pulled_back.directions(source(chat, pull=1))[1]
    drawn = torch.randn(3, len(found), generator=torch.Generator().manual_seed(1))

    def along(vector: torch.Tensor) -> float:
        with SteeringVector({1: vector}).applied(chat, 1.0):
            states = source(chat).read(source(chat).prompts())[2].rows()
        return (states @ later).mean().item()

    slopes = torch.tensor([(along(1e-2 * v) - along(-1e-2 * v)) / 2e-2 for v in drawn])
    expected = drawn @ found
    scale = slopes.norm() / expected.norm()
    torch.testing.assert_close(slopes, scale * expected, atol=2e-2 * slopes.norm(), rtol=0.02)


def test_the_fit_never_loses_to_the_mean_difference_where_it_is_scored() -> None:
    drawn = torch.Generator().manual_seed(0)
    size = 12
    spread = torch.logspace(-1, 1, size, dtype=torch.float64)
    best = torch.randn(size, generator=drawn, dtype=torch.float64)
    draws = torch.randn(60, 4, size, generator=drawn, dtype=torch.float64) * spread
    gain = (spread.square() * best).expand(60, size)
    mean = torch.randn(size, generator=drawn, dtype=torch.float64)
    found = trait_per_kl.Slopes(gain, draws)
    push = trait_per_kl.fitted(mean, found)
    held = found.half(1)
    assert held.score(push) > 1.5 * held.score(mean)
    assert torch.nn.functional.cosine_similarity(push * spread, best * spread, dim=0) > 0.9
    roots = found.roots()
    assert (roots @ push).norm().item() == pytest.approx((roots @ mean).norm().item())
    # A gain that is noise around the mean difference leaves little to fit.
    noise = trait_per_kl.Slopes(torch.randn(60, size, generator=drawn).double(), draws)
    assert noise.half(1).score(trait_per_kl.fitted(mean, noise)) >= noise.half(1).score(mean)


@pytest.mark.slow
def test_slopes_are_those_of_the_reward_and_of_the_divergence() -> None:
    chat = tiny.chat()
    one = source(chat)
    found = trait_per_kl.slopes(one)
    texts = trait_per_kl.sampled(one, trait_per_kl.TEXTS)
    grounds = ground(chat, tiny.persona(), texts)
    drawn = torch.randn(2, SIZES["hidden_size"], generator=torch.Generator().manual_seed(5))
    vector = SteeringVector(dict(zip((1, 2), drawn, strict=True)))
    (read,) = fisher(chat, grounds, [base().steered(vector, 1e-3)])
    positions = sum(len(text.tokens) for text in texts)
    gained = read.per_root_kl.value * math.sqrt(read.kl) * positions / 1e-3
    assert (found.gain.sum(0) @ drawn.flatten().double()).item() == pytest.approx(gained, rel=0.05)
    spent = (found.roots() @ drawn.flatten().double()).square().sum().item() / 2
    assert spent == pytest.approx(read.kl * positions / 1e-6, rel=0.5)
