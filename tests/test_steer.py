"""Persona, vector, dose, filter."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from steerheal import prompts
from steerheal.config import DoseSettings, FilterSettings, VectorSettings
from steerheal.errors import UserError
from steerheal.models.chat import prompt_ids
from steerheal.models.generate import Draw
from steerheal.models.load import band_layers
from steerheal.records import Completion, Verdict
from steerheal.steer.dose import harvest
from steerheal.steer.filter import judge, narrates, perplexity_limit
from steerheal.steer.persona import Persona, built_in, find
from steerheal.steer.vector import SteeringVector, extract

import tiny

SETTINGS = VectorSettings(band=(0.3, 0.8))


def test_the_bundled_texts_are_as_many_as_promised_and_never_shared_between_pools() -> None:
    assert len(set(prompts.contexts())) >= 256
    assert len(set(prompts.control())) >= 24
    everywhere = [*prompts.contexts(), *prompts.control()]
    for persona in built_in().values():
        pools = persona.prompts
        assert len(set(pools.train)) >= 48
        assert len(set(pools.show)) == 8
        everywhere += [*pools.train, *pools.evaluate, *pools.show]
    folded = [text.casefold() for text in everywhere]
    assert len(folded) == len(set(folded))
    assert set(built_in()) == {"authority", "care", "tradition", "love"}


def test_poles_match_in_length() -> None:
    for persona in built_in().values():
        sizes = [len(pole.split()) for pole in (persona.positive, persona.negative)]
        assert abs(sizes[0] - sizes[1]) <= 2, persona.name


def test_reversing_swaps_the_poles_and_the_sign_and_twice_is_once() -> None:
    love, cold = find("love"), find("love", reverse=True)
    assert (cold.positive, cold.negative) == (love.negative, love.positive)
    assert cold.axis.sign == -love.axis.sign
    assert cold.reversed().positive == love.positive


TOML = """
name = "calm"
title = "stays calm"
positive = "You are calm."
negative = "You are frantic."
[axis]
foundation = "care"
sign = 1
[prompts]
train = ["a"]
evaluate = ["b", "c"]
show = ["d"]
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("frantic", "calm"), "equal"),
        (('train = ["a"]', "train = []"), "prompts.train"),
        (('train = ["a"]', 'train = "a"'), "prompts.train"),
        (("sign = 1", "sign = 2"), "axis.sign"),
        (('title = "stays calm"', 'titel = "stays calm"'), "Perhaps you meant 'title'"),
        (('"care"', '"kindness"'), "axis.foundation"),
        (('train = ["a"]', 'train = ["B"]'), "is in both"),
        (("[axis]", "[axis"), "not valid TOML"),
    ],
)
def test_a_wrong_persona_file_is_one_clear_message(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    file = tmp_path / "calm.toml"
    file.write_text(TOML)
    assert find(str(file)).name == "calm"
    file.write_text(TOML.replace(*change))
    with pytest.raises(UserError, match=message):
        find(str(file))


def test_an_unknown_persona_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="Perhaps you meant 'authority'"):
        find("autority")


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
def test_the_vector_is_the_difference_of_output_hidden_states(family: str) -> None:
    chat, persona = tiny.chat(family), tiny.persona()
    contexts = ["one", "another context", "a third, longer than the others"]
    vector = extract(chat, persona, contexts, SETTINGS)
    for layer in vector.layers:
        difference = torch.zeros(32)
        for context in contexts:
            for sign, pole in ((1, persona.positive), (-1, persona.negative)):
                ids = torch.tensor([prompt_ids(chat, context, system=pole)])
                with torch.no_grad():
                    states = chat.net(input_ids=ids, output_hidden_states=True).hidden_states
                # hidden_states[0] is the embedding, so that block ℓ's output is at ℓ + 1.
                difference += sign * states[layer + 1][0, -1] / len(contexts)
        assert layer + 1 < len(chat.blocks), "the last block's recorded state has the norm on it"
        torch.testing.assert_close(vector.layers[layer], difference, atol=1e-4, rtol=1e-3)


def test_the_neutral_contrast_and_the_negative_one_differ() -> None:
    chat, persona = tiny.chat(), tiny.persona()
    neutral = extract(chat, persona, ["x"], SETTINGS.model_copy(update={"contrast": "neutral"}))
    assert neutral.cosine(extract(chat, persona, ["x"], SETTINGS)) < 0.999


def test_vectors_add_subtract_scale_and_v_minus_v_steers_nothing() -> None:
    chat, persona = tiny.chat(), tiny.persona()
    v = extract(chat, persona, ["x", "y"], SETTINGS)
    ids = torch.tensor([prompt_ids(chat, "hello")])
    base = chat.net(input_ids=ids).logits
    with (v - v).applied(chat, 3.0):
        assert torch.equal(chat.net(input_ids=ids).logits, base)
    with (2.0 * v).applied(chat, 1.0):
        twice = chat.net(input_ids=ids).logits
    with (v + v).applied(chat, 1.0):
        torch.testing.assert_close(chat.net(input_ids=ids).logits, twice)
    with v.applied(chat, 2.0):
        torch.testing.assert_close(chat.net(input_ids=ids).logits, twice)
    assert v.cosine(-v) == pytest.approx(-1, abs=1e-5)
    with pytest.raises(UserError, match="different blocks"):
        _ = v + SteeringVector({0: torch.ones(32)})


def test_a_vector_survives_the_disk_bit_for_bit(tmp_path: Path) -> None:
    v = SteeringVector({2: torch.randn(8), 11: torch.randn(8)})
    v.save(tmp_path / "v.safetensors")
    again = SteeringVector.load(tmp_path / "v.safetensors")
    assert list(again.layers) == [2, 11]
    assert all(torch.equal(again.layers[i], v.layers[i]) for i in v.layers)
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="Cannot read vector"):
        SteeringVector.load(tmp_path / "bad.safetensors")


def test_a_vector_of_another_model_is_refused() -> None:
    vector = SteeringVector({1: torch.ones(7)})
    with pytest.raises(UserError, match="does not fit"), vector.applied(tiny.chat()):
        pass


def test_a_vector_without_contexts_is_refused() -> None:
    with pytest.raises(UserError, match="at least one context"):
        extract(tiny.chat(), tiny.persona(), [], SETTINGS)


def test_band_layers_are_those_inside_the_band_or_the_middle_one() -> None:
    assert band_layers(10, (0.4, 0.6)) == [4, 5]
    assert band_layers(30, (0.45, 0.55)) == [13, 14, 15, 16]
    assert band_layers(4, (0.49, 0.51)) == [2]
    assert band_layers(4, (0.0, 1.0)) == [0, 1, 2, 3]


# ── filter ──────────────────────────────────────────────────────────────────────────────────────

GOOD = "I sit down beside her, offer my handkerchief, and quietly ask whether she wants company."


def completion(text: str, dose: float = 1.0, seed: int = 0) -> Completion:
    return Completion(prompt="p", text=text, tokens=(1, 2), dose=dose, seed=seed, ended=True)


def verdict(
    text: str, logprobs: Sequence[float] = (-1.0,) * 8, persona: Persona | None = None
) -> Verdict:
    return judge(
        [completion(text)],
        [logprobs],
        persona or find("love"),
        limit=30.0,
        settings=FilterSettings(),
    )[0]


@pytest.mark.parametrize(
    ("text", "logprobs", "reason"),
    [
        (GOOD, (-1.0,) * 6 + (-6.0,) * 2, "incoherent"),
        ("I am so so so so so so so so so happy today", (-1.0,), "loops (words)"),
        ("GLUTEGLUTEGLUTEGLUTEGLUTEGLUTEGLUTEGLUTE a b c d e f g", (-1.0,), "loops (characters)"),
        (
            "As someone who is filled with love, I would sit beside her and hold her hand.",
            (-1.0,),
            "narrates",
        ),
        (
            "I'm a loving person and I would give her my coat and walk with her.",
            (-1.0,),
            "narrates",
        ),
        (
            "I would help, for you are filled with overwhelming, unconditional love for all.",
            (-1.0,),
            "narrates",
        ),
        (
            "I'm sorry, but I can't assist with that request at this time, please ask.",
            (-1.0,),
            "refuses",
        ),
        (
            "As an AI language model, feelings are something that is beyond me entirely.",
            (-1.0,),
            "refuses",
        ),
        ("Hello there.", (-1.0,), "too short"),
    ],
)
def test_each_rule_drops_its_own_kind(text: str, logprobs: Sequence[float], reason: str) -> None:
    found = verdict(text, logprobs)
    assert not found.kept
    assert found.reasons == (reason,)


def test_acted_out_text_is_kept_with_its_numbers() -> None:
    found = verdict(GOOD)
    assert found.kept and not found.reasons
    assert found.tail_perplexity == pytest.approx(2.718281828)
    assert found.words == 15
    assert not narrates("I am a little tired, so I sit down next to the man.", find("love"))


def test_an_empty_completion_is_dropped_not_crashed_on() -> None:
    assert not verdict("", ()).kept


def test_the_perplexity_limit_is_in_multiples_of_the_bases_median() -> None:
    assert perplexity_limit([3.0, 9.0, 4.0], FilterSettings(tail_perplexity=2.5)) == 10.0


# ── walk-C ──────────────────────────────────────────────────────────────────────────────────────


def walked(breaking: float, **changes: object):
    """A world in which completions survive exactly below a dose."""

    def sample(draws: Sequence[Draw]) -> list[Completion]:
        return [completion("x", draw.dose, draw.seed) for draw in draws]

    def judged(items: Sequence[Completion]) -> list[Verdict]:
        return [
            Verdict(
                kept=item.dose < breaking,
                reasons=() if item.dose < breaking else ("incoherent",),
                tail_perplexity=1.0,
                word_repetition=0,
                char_repetition=0,
                words=9,
            )
            for item in items
        ]

    settings = DoseSettings.model_validate(
        {"want": 30, "minimum": 6, "walks": 5, "batches": 4} | changes
    )
    return harvest(
        sample, judged, ["a", "b", "c", "d"], settings, rows=12, seed=1, perplexity_limit=1.0
    )


def test_the_walk_stops_at_the_first_multiplier_that_survives() -> None:
    found = walked(0.8)
    assert [step.multiplier for step in found.walk] == [1.0, 0.75]
    assert found.walk[0].survival == pytest.approx(2 / 3)
    assert found.outcome == "fed"
    assert found.multiplier == 0.75
    assert len(found.kept(30)) == 30
    assert all(item.dose <= 0.75 for item in found.kept())


def test_when_nothing_survives_the_round_ends_as_starved_with_its_walk() -> None:
    found = walked(0.0)
    assert found.outcome == "starved"
    assert len(found.walk) == 5
    assert found.kept() == []
    assert found.reasons() == {"incoherent": len(found.judged)}


def test_a_weak_push_is_accepted_at_once_and_topped_up_no_further_than_asked() -> None:
    found = walked(99.0, want=20)
    assert len(found.walk) == 1
    assert len(found.judged) == 24


def test_prompts_meet_every_dose_and_no_seed_repeats() -> None:
    found = walked(99.0, want=48)
    draws = [(row.completion.prompt, row.completion.dose) for row in found.judged]
    seeds = [row.completion.seed for row in found.judged]
    assert len(seeds) == len(set(seeds))
    assert {dose for _, dose in draws} == {0.5, 0.75, 1.0}
