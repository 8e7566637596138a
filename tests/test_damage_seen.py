"""Readings that see damage: coherent and implausible answers, spill, tasks, held-out trait."""

import math
from typing import Any

import pytest
import torch

from steerheal.config import FilterSettings, MeasureSettings, SamplingSettings
from steerheal.filter.calibrate import calibrate, seed_of
from steerheal.filter.coherent import CoherenceRules
from steerheal.filter.rules import CALIBRATED
from steerheal.measure import free, own, tasks
from steerheal.measure.evaluate import evaluate
from steerheal.measure.poles import expected_logodds
from steerheal.measure.readings import table
from steerheal.measure.summary import summarise
from steerheal.models.model import ChatModel
from steerheal.prompts import control_held_out
from steerheal.records import Completion, PersonaRow, Scores
from steerheal.state.values import base
from steerheal.streams import EVALUATION, stream

import tiny

MEASURE = MeasureSettings(
    instrument="likelihood", per_foundation=1, prompts=3, tokens=6, long_prompts=0, json_prompts=0,
    held_out_pairs=2, control_prompts=3, control_tokens=5, tasks=4, task_tokens=6,
)  # fmt: skip
DRAWS = stream(0, EVALUATION)
"""What an evaluation of seed 0 draws from."""
SAMPLING = SamplingSettings(tokens=6)
OFF = FilterSettings(calibration_texts=8, words=1, false_drop=0, tail_perplexity=1e9)


def rules() -> CoherenceRules:
    persona = tiny.persona()
    limits = calibrate(tiny.chat(), persona, SAMPLING, OFF, seed=seed_of(0)).limits
    return CoherenceRules(persona, limits, OFF)


def read(
    prompt: str = "", settings: MeasureSettings = MEASURE, *, chat: ChatModel | None = None,
    **more: Any,
) -> Scores:  # fmt: skip
    state = base().prompted(prompt) if prompt else base()
    return evaluate(
        chat or tiny.chat(), "healed" if prompt else "base", state, tiny.persona(), settings,
        sampling=SAMPLING, seed=0, **more,
    )  # fmt: skip


def row(
    text: str, logprobs: tuple[float, ...] = (-1.0, -2.0), *, broken: bool = False
) -> PersonaRow:
    said = Completion(
        prompt=text[:8], text=text, tokens=tuple(range(len(logprobs))), broken=broken, dose=1.0,
        seed=0, ended=False,
    )  # fmt: skip
    return PersonaRow(
        completion=said, logodds=0.0, perplexity=3.0, tail_perplexity=3.0, kl_to_base=0.1,
        word_repetition=0.0, distinct_2=1.0, logprobs=logprobs, entropies=(1.0,) * len(logprobs),
    )  # fmt: skip


def test_the_rules_of_coherence_mind_how_a_text_is_written_and_not_what_it_says() -> None:
    found = rules()
    wide = {rule: side * math.inf for rule, (_, side) in CALIBRATED.items()}
    limits = found.calibration.limits | wide
    found = CoherenceRules(
        found.persona, found.calibration.model_copy(update={"limits": limits}), OFF
    )
    good = "We went to the market and bought bread for the whole street."
    loop = "again and again and again and again and again and again and again and again"
    tells = "I am a person who loves everybody, and I am happy to say so."
    refuses = "I'm sorry, but I can't assist with that."
    rows = [row(text) for text in (good, loop, tells, refuses)] + [row("cut", broken=True)]
    why = found.broken(rows)
    assert [bool(reasons) for reasons in why] == [False, True, False, False, True]
    assert "loops (words)" in why[1] and why[4] == ("not finite",)
    other = CoherenceRules(found.persona, found.calibration, FilterSettings(words=3))
    assert found.key != other.key


def test_implausible_is_the_share_of_tokens_far_below_what_the_base_expects() -> None:
    entry = next(entry for entry in table.entries() if entry.name == "answers_implausible")
    rows = (row("one", (-1.0, -6.0, -5.0, -9.0)), row("two", ()), row("three", broken=True))
    assert entry.rows is not None

    class Asking:
        scores = read().model_copy(update={"persona": rows})

    values = [item.value for item in entry.rows(Asking())]  # pyright: ignore[reportArgumentType]
    assert values[0] == 0.5 and math.isnan(values[1]) and values[2] == 1.0


@pytest.mark.long
def test_every_state_is_read_by_each_of_them_beside_the_base() -> None:
    limits = rules()
    zero, healed = read(rules=limits), read("Shout.", rules=limits)
    found = summarise(healed, zero, tiny.persona().axis)
    sizes = {
        "answers_coherent": 3, "answers_implausible": 3, "control_spill": 3, "control_left": 3,
        "tasks_done": 4,
        "trait_held_out": 3,
    }  # fmt: skip
    for name, size in sizes.items():
        assert found.values[name].n == found.changes[name].n == size, name
    assert {r.value for r in zero.own["control_spill"]} == {0.0}
    assert found.changes["control_spill"].value > 0 < found.changes["control_left"].value
    assert [r.id for r in healed.own["control_spill"]] == list(control_held_out()[:3])
    by_id = {task.id: task for task in tasks.load()[:4]}
    for item in healed.own["tasks_done"]:
        assert item.completion is not None and len(item.completion.tokens) <= 6
        assert item.value == tasks.passed(by_id[item.id], item.completion.text)
    # Without limits the answers' coherence is not claimed; none of the others is missed.
    bare = summarise(read(), read(), tiny.persona().axis)
    assert bare.values.keys() == found.values.keys() - {"answers_coherent"}


@pytest.mark.long
def test_what_is_asked_of_none_is_not_read() -> None:
    none = MEASURE.model_copy(update={"held_out_pairs": 0, "control_prompts": 0, "tasks": 0})
    found = summarise(read(settings=none), read(settings=none), tiny.persona().axis)
    assert not {"control_spill", "tasks_done", "trait_held_out"} & found.values.keys()


@pytest.mark.long
def test_the_held_out_trait_is_the_mean_expectation_over_its_wordings() -> None:
    persona = tiny.persona()
    pairs = [(p.positive, p.negative) for p in persona.pairs("held_out")[:2]]
    with base().prompted("Shout.").entered(tiny.chat()) as reader:
        said = free.answers(reader, persona.prompts.evaluate[:3], SAMPLING, seed=DRAWS)
    want = expected_logodds(tiny.chat(), said, pairs).mean(1)
    found = [item.value for item in read("Shout.").own["trait_held_out"]]
    torch.testing.assert_close(torch.tensor(found), want, atol=2e-4, rtol=1e-3)
    trained = [item.logodds for item in read("Shout.").persona]
    assert found != pytest.approx(trained, abs=1e-6)


@pytest.mark.long
def test_the_base_writes_its_control_answers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = own.base_texts

    def noted(chat: Any, prompts: Any, *rest: Any, **more: Any) -> list[Completion]:
        calls.append(len(prompts))
        return real(chat, prompts, *rest, **more)

    monkeypatch.setattr(own, "base_texts", noted)
    chat = tiny.chat()
    one, other = read("Shout.", chat=chat), read("Whisper.", chat=chat)
    assert calls == [3]
    assert [r.id for r in one.own["control_spill"]] == [r.id for r in other.own["control_spill"]]
    assert one.own["control_spill"] != other.own["control_spill"]


def test_only_a_forced_choice_has_an_answer_mass_of_its_own() -> None:
    scores = read()
    forced = scores.model_copy(update={"instrument": "forced_choice"})
    axis = tiny.persona().axis
    found = summarise(forced, forced, axis)
    mean = sum(row.p_ans_any for row in scores.vignettes) / len(scores.vignettes)
    assert found.values["choice_mass"].value == pytest.approx(mean)
    assert found.changes["choice_mass"].value == 0.0
    other = summarise(scores, scores, axis)
    assert "choice_mass" not in other.values.keys() | other.changes.keys()


def test_the_base_s_own_nats_of_every_token_are_kept_with_an_answer() -> None:
    for item in read("Shout.").persona:
        assert len(item.logprobs) == len(item.entropies) == len(item.completion.tokens)
        mean = sum(item.logprobs) / len(item.logprobs)
        assert math.exp(-mean) == pytest.approx(item.perplexity, rel=2e-3)
