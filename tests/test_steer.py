"""Persona, vector, dose."""

from pathlib import Path

import pytest
import torch

from steerheal import prompts
from steerheal.commands.personas import warnings
from steerheal.config import DoseSettings, VectorSettings
from steerheal.errors import UserError
from steerheal.models.chat import prompt_ids
from steerheal.models.generate import Draw
from steerheal.models.model import band_layers
from steerheal.personas import HALVES, Pair, Paraphrases, Persona, built_in, find
from steerheal.pipeline.walk import Choose, harvest
from steerheal.records import Calibration, Completion, Harvest, Verdict
from steerheal.state.formulas import contrast
from steerheal.state.values import State, base
from steerheal.state.vector import SteeringVector
from steerheal.steer.vector import extract

import tiny

SETTINGS = VectorSettings(band=(0.3, 0.8))


def test_the_bundled_texts_are_as_many_as_promised_and_never_shared_between_pools() -> None:
    assert len(set(prompts.contexts())) >= 256
    train, held_out = prompts.control_train(), prompts.control_held_out()
    assert len({*train, *held_out}) >= 64 and len(train) == len(held_out)
    everywhere = [*prompts.contexts(), *train, *held_out]
    for persona in built_in().values():
        pools = persona.prompts
        assert len(set(pools.train)) >= 48
        assert len(set(pools.show)) == 8
        assert len(set(pools.test)) == len(pools.evaluate) == 32
        everywhere += [*pools.train, *pools.evaluate, *pools.show, *pools.test]
    folded = [text.casefold() for text in everywhere]
    assert len(folded) == len(set(folded))
    assert set(built_in()) == {"authority", "care", "tradition", "love"}


def test_a_persona_without_test_prompts_shares_its_evaluation_prompts_out() -> None:
    own = tiny.prompts(test=("mine",))
    assert own.with_test() == own
    found = tiny.prompts().with_test()
    assert found.halved and found.with_test() == found
    assert (found.evaluate, found.test) == (
        ("evaluate 0", "evaluate 2"), ("evaluate 1", "evaluate 3"),
    )  # fmt: skip
    few = tiny.prompts().model_copy(update={"evaluate": ("a", "b", "c")})
    assert few.with_test() == few and few.test == ()


def test_poles_and_paraphrases_match_in_length_and_negate_nothing() -> None:
    for persona in built_in().values():
        halves = persona.paraphrases
        assert len(halves.train) >= 8 and len(halves.held_out) >= 8
        poles = Pair(positive=persona.positive, negative=persona.negative)
        for pair in (poles, *persona.pairs("train"), *persona.pairs("held_out")):
            sizes = [len(text.split()) for text in (pair.positive, pair.negative)]
            assert abs(sizes[0] - sizes[1]) <= 2, pair
        assert warnings(persona) == []


def test_the_paraphrases_of_a_persona_open_in_as_many_ways_as_there_are_pairs() -> None:
    for persona in built_in().values():
        for half in HALVES:
            openings = [" ".join(pair.positive.split()[:2]) for pair in persona.pairs(half)]
            assert len(set(openings)) == len(openings), (persona.name, half)


def test_without_paraphrases_the_poles_stand_for_each_half() -> None:
    old = (Path(__file__).parent / "data" / "persona_without_paraphrases.json").read_text()
    bare = Persona.model_validate_json(old)
    assert bare == find(str(Path(__file__).parents[1] / "examples" / "calm.toml"))
    poles = Pair(positive=bare.positive, negative=bare.negative)
    assert bare.pairs("train") == bare.pairs("held_out") == (poles,)
    love = find("love").pairs("train")
    half = bare.model_copy(update={"paraphrases": Paraphrases(train=love)})
    assert (half.pairs("train"), half.pairs("held_out")) == (love, (poles,))


def test_reversing_swaps_the_poles_and_the_sign_and_twice_is_once() -> None:
    love, cold = find("love"), find("love", reverse=True)
    assert (cold.positive, cold.negative) == (love.negative, love.positive)
    assert cold.axis.sign == -love.axis.sign
    assert cold.reversed().positive == love.positive
    for half in HALVES:
        for there, here in zip(cold.pairs(half), love.pairs(half), strict=True):
            assert (there.positive, there.negative) == (here.negative, here.positive)
    assert cold.reversed().paraphrases == love.paraphrases


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
[[paraphrases.train]]
positive = "You rest like a lake."
negative = "You rush like a flood."
[[paraphrases.held_out]]
positive = "Breathe slowly."
negative = "Breathe hastily."
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
        (('train = ["a"]', 'train = ["a"]\ntest = ["C"]'), "is in both evaluate and test"),
        (("[axis]", "[axis"), "not valid TOML"),
        (("Breathe hastily.", "breathe\u00a0 SLOWLY."), "held_out.0.positive and .*held_out.0.neg"),
        (("Breathe slowly.", "You rest like a lake."), "train.0.positive and .*out.0.positive"),
        (("You rush like a flood.", "you are frantic."), "negative and .*train.0.negative"),
        (("Breathe slowly.", "You are a helpful assistant."), "neutral and .*out.0.positive"),
        (('"Breathe slowly."', '""'), "held_out.0.positive: given nothing; allowed: text"),
        (("Breathe slowly.", "a" * 9_000), "held_out.0.positive: .* at most 8000 characters"),
        (('"Breathe slowly."', "3"), "held_out.0.positive: given 3; allowed: text"),
        (('positive = "Breathe', 'positiv = "Breathe'), "Perhaps you meant 'positive'"),
        (('negative = "Breathe hastily."', ""), "paraphrases.held_out.0.negative is missing"),
        (("[[paraphrases.held_out]]", "[[paraphrases.heldout]]"), "Perhaps you meant 'held_out'"),
        (("[[paraphrases.held_out]]", "[paraphrases.held_out]"), "paraphrases.held_out: given"),
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


# ── walk-C ──────────────────────────────────────────────────────────────────────────────────────


LIMITS = Calibration(
    texts=8, classes={}, medians={}, spreads={}, limits={"tail perplexity": 9.0}, dropped={}
)


V = SteeringVector({1: torch.ones(4)})


def walked(
    breaking: float,
    teacher: State | None = None,
    *,
    lost: float = 0.0,
    draws: int = 1,
    choose: Choose | None = None,
    **changes: object,
) -> Harvest:
    """A world in which completions survive exactly below a dose; the base's own lose a share."""

    def one(state: State, draw: Draw) -> tuple[Completion, Verdict]:
        dose = state.dose
        written = Completion(
            prompt=draw.prompt, text="x", tokens=(1,), dose=dose, seed=draw.seed, ended=True
        )
        kept = dose < breaking
        return written, Verdict(
            kept=kept,
            reasons=() if kept else ("incoherent",),
            tail_perplexity=1.0,
            word_repetition=0,
            char_repetition=0,
            words=9,
        )

    settings = DoseSettings.model_validate(
        {"start": 1.0, "want": 30, "minimum": 6, "walks": 5, "batches": 4} | changes
    )
    prompts = ["a", "b", "c", "d"]
    return harvest(
        lambda states, draws: [one(states[draw.state], draw) for draw in draws],
        teacher or base().steered(V, 1.0),
        prompts,
        settings,
        rows=12,
        seed=1,
        calibration=LIMITS.model_copy(update={"fresh": {"together": lost}} if lost else {}),
        draws=draws,
        choose=choose,
    )


def test_the_walk_stops_at_the_first_dose_that_survives() -> None:
    found = walked(0.8)
    assert [step.multiplier for step in found.walk] == [1.0, 0.75]
    assert found.walk[0].survival == pytest.approx(2 / 3)
    assert found.outcome == "fed"
    assert found.multiplier == 0.75
    assert len(found.kept(30)) == 30
    assert all(item.dose <= 0.75 for item in found.kept())


def test_what_must_survive_is_a_share_of_what_the_base_s_own_text_survives() -> None:
    # Two thirds of the first batch survive: less than 0.75, and more than 0.75 of 0.8.
    assert walked(0.8).needed == 0.75 and len(walked(0.8).walk) == 2
    found = walked(0.8, lost=0.2)
    assert found.needed == pytest.approx(0.6)
    assert [step.multiplier for step in found.walk] == [1.0]
    assert len(walked(0.8, lost=0.1).walk) == 2


def test_the_walk_needs_a_number_to_start_at() -> None:
    with pytest.raises(UserError, match=r"dose\.start is auto"):
        walked(0.8, start="auto")
    assert walked(0.8, base(), start="auto").multiplier == 0.0


def test_a_top_up_draws_what_is_likely_to_be_enough_and_no_more() -> None:
    found = walked(0.8, want=14)
    sizes = [
        sum(row.batch == name for row in found.judged)
        for name in dict.fromkeys(row.batch for row in found.judged)
    ]
    # Twelve at each dose of the walk; all twelve of the second survive, two are missing.
    assert sizes == [12, 12, 3]
    assert len(found.kept(14)) == 14


@pytest.mark.parametrize("teacher", [base(), base().prompted("You are warm.")])
def test_a_teacher_without_a_dose_is_asked_once_and_topped_up(teacher: State) -> None:
    found = walked(1.0, teacher, want=20)
    assert [(step.multiplier, step.drawn) for step in found.walk] == [(0.0, 12)]
    assert found.outcome == "fed" and len(found.kept(20)) == 20
    starved = walked(0.0, teacher)
    assert starved.outcome == "starved" and len(starved.walk) == 1


def test_a_teacher_of_several_parts_is_walked_as_a_whole() -> None:
    odd = contrast(base(), base().steered(V, 1.0), base().steered(V, -1.0), 0.5)
    found = walked(0.8, odd)
    assert [step.multiplier for step in found.walk] == [1.0, 0.75]
    assert {row.completion.dose for row in found.judged} == {
        row.completion.dose for row in walked(0.8).judged
    }


def test_when_nothing_survives_the_round_ends_as_starved_with_its_walk() -> None:
    found = walked(0.0)
    assert found.outcome == "starved"
    assert len(found.walk) == 5
    assert found.kept() == []
    assert found.reasons() == {"incoherent": len(found.judged)}


def test_a_weak_push_is_accepted_at_once_and_topped_up_no_further_than_asked() -> None:
    found = walked(99.0, want=20)
    assert len(found.walk) == 1
    assert len(found.judged) == 12 + 10  # eight are missing, and a quarter more is drawn
    assert found.perplexity_limit == 9.0 and found.calibration == LIMITS


def test_prompts_meet_every_dose_and_no_seed_repeats() -> None:
    found = walked(99.0, want=48)
    draws = [(row.completion.prompt, row.completion.dose) for row in found.judged]
    seeds = [row.completion.seed for row in found.judged]
    assert len(seeds) == len(set(seeds))
    assert {dose for _, dose in draws} == {0.5, 0.75, 1.0}
