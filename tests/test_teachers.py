"""Teachers by name: the laws of each, and a run whose text another one than the vector wrote."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from steerheal.config import RunConfig, SamplingSettings
from steerheal.models.chat import prompt_ids
from steerheal.models.generate import Draw, write
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states
from steerheal.pipeline.stage_work import Counted
from steerheal.report.page import write_report
from steerheal.state.values import State, base
from steerheal.state.vector import SteeringVector
from steerheal.steer.teachers.find import find
from steerheal.steer.teachers.teacher import Materials
from steerheal.tables import TEACHERS
from test_loop import start
from test_state import vector

import tiny


def taught(name: str, v: SteeringVector | None = None, epsilon: float = 0.1) -> State:
    return find(name).make(Materials(base(), v or vector(), tiny.persona(), epsilon))


@torch.no_grad()
def log_p(chat: ChatModel, state: State) -> Tensor:
    pairs = [(prompt_ids(chat, "say"), list(b"a warm day"))]
    with state.entered(chat) as reader:
        return reader.logits(torch.cat(continuation_states(reader, pairs))).log_softmax(-1)


def test_every_teacher_says_whether_it_has_a_dose() -> None:
    for name in TEACHERS:
        assert find(name).dosed == bool(taught(name).dose), name
    assert taught("plain") == base()
    assert taught("vector").dose == taught("antisymmetric").dose == 1


def test_the_antisymmetric_teacher_is_the_base_at_dose_0_and_odd_in_the_vector() -> None:
    chat = tiny.chat()
    own = log_p(chat, base())
    at_0 = log_p(chat, taught("antisymmetric").at_dose(0.0))
    torch.testing.assert_close(at_0, own, atol=1e-4, rtol=1e-4)
    plus = log_p(chat, taught("antisymmetric").at_dose(2.0)) - own
    minus = log_p(chat, taught("antisymmetric").at_dose(-2.0)) - own
    even = plus + minus
    assert plus.std() > 0.1
    # Only the normalisers are left, which are the same for every token.
    assert (even - even.mean(-1, keepdim=True)).abs().max() < 1e-3


def test_without_a_mask_the_plausible_teacher_is_the_vector_and_with_one_it_writes_inside() -> None:
    assert taught("plausible", epsilon=0.0) == taught("vector")
    chat, strong = tiny.chat(), taught("plausible").at_dose(4.0)
    own, masked = log_p(chat, base()), log_p(chat, strong).exp()
    kept = own >= own.amax(-1, keepdim=True) + torch.tensor(0.1).log()
    assert not masked[~kept].any() and masked[kept].all()
    with strong.entered(chat) as writer:
        (said,), _ = write(writer, [Draw("say", seed=1)], SamplingSettings(tokens=6))
    pairs = [(prompt_ids(chat, "say"), list(said.tokens))]
    with torch.no_grad():
        logits = chat.logits(torch.cat(continuation_states(chat, pairs)))
    chosen = logits.gather(1, torch.tensor(said.tokens)[:, None])[:, 0]
    assert (chosen >= logits.amax(-1) + torch.tensor(0.1).log() - 1e-4).all()


def stronger(student: State, v: SteeringVector) -> State:
    return student.steered(v, 2.0)


def test_a_function_of_student_and_vector_is_a_teacher() -> None:
    config = RunConfig.model_validate({"teacher": stronger})
    assert config.teacher == "test_teachers:stronger"
    assert taught(config.teacher) == base().steered(vector(), 2.0)


@pytest.mark.slow
def test_a_run_whose_text_a_prompt_wrote_walks_no_dose_and_says_who_wrote_it(
    tmp_path: Path,
) -> None:
    record = start(tmp_path, rounds=1, teacher="prompt", dose={"start": "auto"})
    (first,) = record.rounds
    assert first.curve is None and first.sweep is None and first.outcome == "folded"
    assert [step.multiplier for step in first.walk] == [0.0]
    assert first.findings[0].check == "check 1"
    assert first.written_by == "system prompt: positive pole"
    page = write_report(tmp_path / "run").read_text()
    assert "text written by" in page and "round 1: system prompt: positive pole" in page
    config, persona = record.settings(tmp_path), record.whose(tmp_path)
    planned = [(one.round, one.name) for one in Counted(tiny.chat(), persona, config).stages()]
    assert planned == [(mark.round, mark.name) for mark in record.stages]
