"""What writes the training text is a state: samplers, readers, harvest and heal take any."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from steerheal.config import MeasureSettings, RunConfig, SamplingSettings, merge
from steerheal.errors import UserError
from steerheal.filter.scores import scored_by
from steerheal.heal.barrier import position_losses
from steerheal.heal.teacher import taught
from steerheal.measure import coherence, free, likelihood, moralmaps, vignettes
from steerheal.measure.evaluate import evaluate
from steerheal.models.asking import asked
from steerheal.models.chat import prompt_ids
from steerheal.models.decode import Decoding
from steerheal.models.generate import Draw, Written, write
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states, kl_between
from steerheal.pipeline import loop
from steerheal.pipeline.stage_store import Store
from steerheal.pipeline.stages import Stages
from steerheal.records import Completion, RunRecord
from steerheal.state.formulas import MASKED, contrast, plausible
from steerheal.state.values import State, base, entered
from test_loop import TINY, Silent
from test_state import adapter, three, vector

import tiny

PROMPTS = ["a", "some longer prompt than the first", "mid size"]
ORDINARY = SamplingSettings(tokens=12, top_p=0.9)


def kinds(chat: ChatModel) -> dict[str, State]:
    v = vector()
    odd = contrast(base(), base().steered(v, 1.0), base().steered(v, -1.0), 0.5)
    return {
        "nothing": base(),
        "a vector": base().steered(v, 1.0),
        "a prompt": base().prompted(tiny.persona().positive, "positive pole"),
        "an adapter": base().folded(adapter(chat), 0.5),
        "two adapters": base().folded(adapter(chat, 1)).folded(adapter(chat, 2), -1.0),
        "both signs": odd,
        "prompts": contrast(*three(chat, "prompts"), 0.5),
        "a mask": plausible(base().steered(v, 1.0), base(), 0.3),
        "a masked contrast": plausible(odd, base().prompted("Be plain."), 0.3),
    }


def writing(reader: ChatModel, state: int = 0) -> Written:
    draws = [Draw(prompt, state, seed=i) for i, prompt in enumerate(PROMPTS)]
    return write(reader, draws, ORDINARY, keep_states=True)


@torch.no_grad()
def replayed(reader: ChatModel, item: Completion, state: int = 0) -> Tensor:
    """Logits behind every token of one completion, read alone, one token at a time."""
    batch = Decoding(reader, [asked(reader, item.prompt, state=state)])
    found = [batch.start()[:, -1:]]
    for token in item.tokens[:-1]:
        found.append(batch.on(torch.tensor([[token]])))
    return reader.logits(torch.cat(found, dim=1))[0]


@pytest.mark.long
@pytest.mark.parametrize("name", kinds(tiny.chat()))
def test_what_any_state_writes_is_drawn_from_its_own_logits(name: str) -> None:
    chat = tiny.chat()
    with kinds(chat)[name].entered(chat) as reader:
        found = writing(reader)
        for item, states in zip(found.completions, found.states, strict=True):
            logits, own = replayed(reader, item), reader.logits(states)
            torch.testing.assert_close(own, logits, atol=2e-3, rtol=1e-3)
            chosen = own.gather(1, torch.tensor(item.tokens)[:, None])
            assert (chosen > MASKED).all(), "a masked token is never drawn"
        pairs = free.answer_pairs(reader, found.completions)
        read = continuation_states(reader, pairs)
        for states, whole in zip(found.states, read, strict=True):
            torch.testing.assert_close(whole, states, atol=2e-3, rtol=1e-3)


def test_states_of_several_doses_and_prompts_write_in_one_batch_what_each_writes_alone() -> None:
    chat = tiny.chat()
    states = [
        base(),
        base().steered(vector(), 1.0),
        base().steered(vector(), -0.5).prompted("You are warm."),
        base().folded(adapter(chat), 0.5),
    ]
    with entered(chat, states) as reader:
        draws = [Draw(p, k, i) for k in range(len(states)) for i, p in enumerate(PROMPTS)]
        together = write(reader, draws, ORDINARY).completions
    for k, state in enumerate(states):
        with state.entered(chat) as reader:
            alone = writing(reader).completions
        ours = together[k * len(PROMPTS) : (k + 1) * len(PROMPTS)]
        assert [item.tokens for item in ours] == [item.tokens for item in alone]
        assert {item.dose for item in ours} == {state.dose}


@pytest.mark.long
@pytest.mark.parametrize("name", ["both signs", "a masked contrast", "a prompt"])
def test_states_of_one_formula_read_together_as_they_read_alone(name: str) -> None:
    chat, acts = tiny.chat(), vignettes.load("everyday")[:2]
    whole = kinds(chat)[name]
    states = [whole.at_dose(dose) for dose in (1.0, 0.3)] if whole.dose else [whole, base()]
    with entered(chat, states) as reader:
        rows, slots = likelihood.sweep(reader, acts), coherence.sweep(reader, ["Ice is hot."])
    for state, found, slot in zip(states, rows, slots, strict=True):
        with state.entered(chat) as reader:
            alone, single = likelihood.read(reader, acts), coherence.read(reader, ["Ice is hot."])
        for one, other in zip(found, alone, strict=True):
            assert one.score == pytest.approx(other.score, abs=5e-3)
        assert slot[0].p_ans_any == pytest.approx(single[0].p_ans_any, rel=5e-3, abs=1e-9)


@pytest.mark.long
def test_a_prompted_state_is_evaluated_like_any_other_and_reads_prose_as_its_base() -> None:
    chat, persona = tiny.chat(), tiny.persona()
    settings = MeasureSettings(
        instrument="likelihood", per_foundation=1, prompts=2, tokens=5,
        long_prompts=0, json_prompts=0, held_out_pairs=0, control_prompts=0, tasks=0,
    )  # fmt: skip

    def read(state: State, previous: State | None = None):
        return evaluate(
            chat, "steered", state, persona, settings, sampling=ORDINARY, seed=0, previous=previous
        )

    plain, warm = read(base()), read(kinds(chat)["a prompt"], base())
    assert warm.plain_perplexity == plain.plain_perplexity
    assert warm.vignettes[0].score != pytest.approx(plain.vignettes[0].score, abs=1e-3)
    for row in warm.persona:
        assert row.kl_to_base > 0 and row.kl_to_previous == pytest.approx(row.kl_to_base)
        up, down = (
            sum(
                chat.logits(chat.hidden(torch.tensor([[*ids, *row.completion.tokens]])))[0]
                .log_softmax(-1)[len(ids) - 1 + k, token]
                .item()
                for k, token in enumerate(row.completion.tokens)
            )
            for pole in (persona.positive, persona.negative)
            for ids in [prompt_ids(chat, row.completion.prompt, system=pole)]
        )
        odds = (up - down) / len(row.completion.tokens)
        assert row.logodds == pytest.approx(odds, abs=1e-3)


def test_a_masked_writer_s_divergence_is_of_what_it_may_say() -> None:
    chat = tiny.chat()
    with kinds(chat)["a mask"].entered(chat) as reader:
        said, states = writing(reader)
    scored = scored_by(chat, said, tiny.persona(), states, writer=reader)
    for item, own, of in zip(said, states, scored, strict=True):
        plain = continuation_states(chat, free.answer_pairs(chat, [item]))[0]
        p, q = reader.logits(own).log_softmax(-1), chat.logits(plain).log_softmax(-1)
        kept = p > MASKED / 2
        wanted = (p.exp() * (p - q)).masked_fill(~kept, 0).sum(-1)
        assert list(of.kls) == pytest.approx(wanted.tolist(), abs=1e-4)
        assert min(of.kls) > 0.05


@pytest.mark.long
@pytest.mark.parametrize("name", kinds(tiny.chat()))
def test_a_teacher_s_lesson_is_its_own_logits_on_what_was_kept(name: str) -> None:
    chat, teacher = tiny.chat(), kinds(tiny.chat())[name]
    doses = (1.0, 0.5) if teacher.dose else (0.0, 0.0)
    states = [teacher.at_dose(dose) for dose in doses] if teacher.dose else [teacher]
    with entered(chat, states) as reader:
        kept = [item for k in range(len(states)) for item in writing(reader, k).completions]
        wanted = [
            replayed(reader, item, doses.index(item.dose) if teacher.dose else 0) for item in kept
        ]
    lesson = taught(chat, teacher, kept)
    for states_of, logits in zip(lesson.states, wanted, strict=True):
        found = lesson.reader.logits(states_of)
        torch.testing.assert_close(found, logits, atol=3e-3, rtol=1e-3)


def test_a_masked_teacher_is_fitted_as_its_own_distribution() -> None:
    chat = tiny.chat()
    with kinds(chat)["a mask"].entered(chat) as reader:
        (item, *_), (states, *_) = writing(reader)
    own = torch.randn(len(item.tokens), 32).requires_grad_()
    t = reader.logits(states).log_softmax(-1)
    p = chat.logits(own).log_softmax(-1)
    fit = (t.exp() * (t - p)).sum(-1)
    (slope,) = torch.autograd.grad(fit.sum(), own)
    found = position_losses(
        chat, own, torch.tensor(item.tokens), None, "none", teacher=states, taught_by=reader
    )
    torch.testing.assert_close(found.fit, fit.detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.fit_grad, slope, atol=1e-4, rtol=1e-4)
    again = kl_between(chat, states, own.detach(), reader)
    torch.testing.assert_close(again, fit.detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("nothing", "sft"),
        ("a prompt", "sft"),
        ("two adapters", "distill"),
        ("both signs", "sft"),
        ("both signs", "distill"),
        ("a mask", "distill"),
    ],
)
def test_any_teacher_is_harvested_filtered_and_healed_by_the_same_stages(
    tmp_path: Path, name: str, objective: str
) -> None:
    chat = tiny.chat()
    teacher = kinds(chat)[name]
    heal = {"objective": objective, "epochs": 1, "barrier": "kl_rev", "rank": 2}
    config = RunConfig.model_validate(merge(TINY, {"heal": heal}))
    store = Store(tmp_path, "run", notify=lambda _: None)
    stages = Stages(config, tiny.persona(), chat, store, Silent())
    found = stages.harvest(0, teacher)
    assert found.outcome == "fed" and (len(found.walk) == 1 or teacher.dose)
    if not teacher.dose:
        assert {row.completion.dose for row in found.judged} == {0.0}
    healed = stages.healed(0, base(), teacher, found)
    assert healed.log.outcome == "trained" and math.isfinite(healed.log.steps[-1].ce)
    other = stages.harvest(0, replace(base(), system="Something else."))
    assert other != found


@pytest.mark.slow
def test_a_run_takes_another_teacher_than_the_vector(tmp_path: Path) -> None:
    chat, persona = tiny.chat(), tiny.persona()
    config = RunConfig.model_validate(merge(TINY, {"rounds": 1}))
    store = Store(tmp_path, "run", notify=lambda _: None)
    stages = Stages(config, persona, chat, store, Silent())
    record = RunRecord(
        status="running", name="run", config=config.model_dump(mode="json"), command="",
        environment={}, persona=persona.model_dump(mode="json"),
    )  # fmt: skip
    store.write_run(record)
    asked_for = []

    def teach(student: State, found: object) -> State:
        asked_for.append(found)
        return student.prompted(persona.positive)

    done = loop.run(stages, record, Silent(), teach=teach)
    assert done.status == "finished" and len(asked_for) == 1
    (first,) = done.rounds
    assert first.multiplier == 0 and first.outcome in {"folded", "starved"}


def test_what_runs_the_network_itself_meets_plain_states_and_refuses_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat = tiny.chat()
    v, one = vector(), adapter(chat)
    ids = torch.tensor([prompt_ids(chat, "say")])
    states = [base(), base().steered(v, 1.0), base().folded(one, 0.5).steered(v, 0.5)]
    with entered(chat, states) as reader, torch.no_grad():
        for i in range(len(states)):
            with reader.resting(i):
                found = chat.net(input_ids=ids).logits
            hidden = reader.hidden(ids, reader.acting([asked(reader, "say", state=i)]))
            torch.testing.assert_close(found, reader.logits(hidden), atol=1e-4, rtol=1e-4)
    monkeypatch.setattr(moralmaps, "read", lambda *_args, **_: [])
    for state in (base().prompted("x"), kinds(chat)["both signs"], states[1].acting_from(0)):
        with (
            state.entered(chat) as reader,
            pytest.raises(UserError, match="runs the network itself"),
            reader.resting(),
        ):
            pass
