"""A heal of several adapters: their mean, and the steered one less the unsteered."""

from pathlib import Path
from typing import Any

import pytest
import torch

from steerheal.config import HealSettings, SamplingSettings
from steerheal.heal.checkpoint import Checkpoint
from steerheal.heal.round import NOTHING_LEFT, PART, heal
from steerheal.heal.train import Healed, training_pairs
from steerheal.models.generate import Draw, generate
from steerheal.models.score import continuation_states, kl_between
from steerheal.pipeline.stage_work import Counted
from steerheal.records import Completion
from steerheal.state.adapter import Adapter
from steerheal.state.values import State, base
from steerheal.state.vector import SteeringVector
from test_loop import start
from test_train import pairs_of, settings

import tiny

CHAT = tiny.chat()
SHORT = SamplingSettings(tokens=6, temperature=1.0)
SAID = [
    Completion(prompt=f"say {i}", text="x", tokens=tuple(rest), dose=0, seed=i, ended=True)
    for i, (_, rest) in enumerate(pairs_of(CHAT)[:4])
]


def healed(seed: int = 0, less: Adapter | None = None, **changes: Any) -> Healed:
    how = settings(epochs=1, lr=0.01, barrier="none", **changes)
    return heal(CHAT, base(), base(), SAID, how, number=0, seed=seed, less=less)


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


@pytest.mark.long
def test_an_average_is_the_mean_of_heals_of_other_seeds() -> None:
    mean, parts = healed(average=2), [healed(), healed(seed=PART)]
    assert mean.adapter.rank == 2 * parts[0].adapter.rank and mean.log.averaged == 2
    assert len(mean.log.steps) == sum(len(part.log.steps) for part in parts)
    first, second = (part.adapter for part in parts)
    for name in mean.adapter.pairs:
        assert not torch.equal(first.delta(name), second.delta(name))
        same(mean.adapter.delta(name), (first.delta(name) + second.delta(name)) / 2)


@pytest.mark.long
def test_equal_data_subtracts_to_nothing_and_a_share_of_it_leaves_the_rest() -> None:
    plain = healed()
    gone, half = (healed(less=plain.adapter, subtract=share) for share in (1.0, 0.5))
    assert (gone.log.outcome, gone.log.reason) == ("rejected", NOTHING_LEFT)
    assert half.log.subtracted == 0.5 and plain.log.subtracted == 0
    for name in plain.adapter.pairs:
        assert plain.adapter.delta(name).abs().max() > 1e-5
        assert gone.adapter.delta(name).abs().max() < 1e-7
        same(half.adapter.delta(name), plain.adapter.delta(name) / 2)


@pytest.mark.long
def test_an_average_that_was_cut_off_goes_on_in_its_second_adapter(tmp_path: Path) -> None:
    class Killed(Exception): ...

    taken: list[int] = []

    def stopping(*_: object) -> None:
        taken.append(1)
        if len(taken) == 3:
            raise Killed

    def again(**hears: Any) -> Healed:
        how, file = settings(epochs=2, lr=0.01, average=2), Checkpoint(tmp_path / "heal")
        return heal(CHAT, base(), base(), SAID, how, number=0, seed=0, checkpoint=file, **hears)

    with pytest.raises(Killed):
        again(progress=stopping)
    before = len(taken)
    found = again(progress=lambda *_: taken.append(1))
    whole = heal(
        CHAT, base(), base(), SAID, settings(epochs=2, lr=0.01, average=2), number=0, seed=0
    )
    assert len(taken) - before < len(whole.log.steps)
    for name in whole.adapter.pairs:
        assert torch.equal(found.adapter.delta(name), whole.adapter.delta(name))
    Checkpoint(tmp_path / "heal").remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_of_the_opposite_dose_s_text_half_the_difference_is_left_and_nothing_without_a_dose() -> (
    None
):
    push = SteeringVector({1: 3 * torch.randn(32, generator=torch.Generator().manual_seed(1))})
    how = settings(epochs=1, lr=0.01, barrier="none", subtract=1.0, subtract_text="opposite")
    plain = how.of_control
    up, down = base().steered(push, 2.0), base().steered(push, -2.0)

    def written(teacher: State) -> list[Completion]:
        with teacher.entered(CHAT) as reader:
            said = generate(reader, [Draw(f"say {i}", seed=i) for i in range(4)], SHORT)
        return [item.model_copy(update={"dose": teacher.dose}) for item in said]

    def trained(teacher: State, text: list[Completion], how: HealSettings) -> Healed:
        return heal(CHAT, base(), teacher, text, how, number=0, seed=0, sampling=SHORT)

    found = trained(up, written(up), how)
    one, other = (trained(who, written(who), plain).adapter for who in (up, down))
    assert found.log.sampled == sum(len(item.tokens) for item in written(down))
    assert found.log.subtracted == 1 and how.writes and not plain.writes
    for name in one.pairs:
        assert one.delta(name).abs().max() > 1e-5
        same(found.adapter.delta(name), (one.delta(name) - other.delta(name)) / 2)
    gone = trained(base(), written(base()), how)
    assert (gone.log.outcome, gone.log.reason) == ("rejected", NOTHING_LEFT)


def test_what_is_distilled_has_no_control_to_subtract() -> None:
    with pytest.raises(ValueError, match="no unsteered control to subtract"):
        HealSettings(objective="distill", subtract=1)


@pytest.mark.long
def test_on_policy_every_adapter_is_trained_on_what_the_student_writes_by_then() -> None:
    push = SteeringVector({1: 3 * torch.randn(32, generator=torch.Generator().manual_seed(1))})
    teacher, wrote = base().steered(push, 2.0), []
    how = settings(objective="reverse", epochs=2, lr=0.01, barrier="none", on_policy=2)
    said = [item.model_copy(update={"dose": 2.0}) for item in SAID]

    def apart(state: State) -> float:
        """KL(state‖teacher) on the state's own text."""
        with state.entered(CHAT) as reader:
            own = generate(reader, [Draw(f"say {i}", seed=i) for i in range(8)], SHORT)
            pairs = training_pairs(CHAT, own)
            mine = torch.cat(continuation_states(reader, pairs))
        with teacher.entered(CHAT) as reader:
            return (
                kl_between(CHAT, mine, torch.cat(continuation_states(reader, pairs))).mean().item()
            )

    found = heal(CHAT, base(), teacher, said, how, number=0, seed=0, sampling=SHORT,
                 progress=lambda step, _of: wrote.append(step.tokens))  # fmt: skip
    assert found.log.on_policy == 2 and found.adapter.rank == 2 * how.rank
    assert len(found.log.steps) == len(wrote)
    assert apart(base().folded(found.adapter)) < apart(base())
    again = heal(CHAT, base(), teacher, said, how, number=0, seed=0, sampling=SHORT)
    for name in found.adapter.pairs:
        assert torch.equal(found.adapter.delta(name), again.adapter.delta(name))


def test_own_text_needs_a_teacher_to_correct_it() -> None:
    with pytest.raises(ValueError, match="use distill, reverse or group"):
        HealSettings(on_policy=2)


@pytest.mark.slow
def test_a_run_takes_the_common_mode_away_and_makes_what_was_planned(tmp_path: Path) -> None:
    heal_ = {"average": 2, "subtract": 0.5, "barrier": "none"}
    record = start(tmp_path, rounds=1, heal=heal_, read_prompted=False, check={"doses": ()})
    log = record.rounds[0].heal
    assert log is not None and (log.averaged, log.subtracted) == (2, 0.5)
    assert Adapter.load(tmp_path / "run" / "round-01" / "adapter").rank == 2 * 2 * 2
    counted = Counted(
        tiny.chat(), tiny.persona(prompts=tiny.prompts(test=tiny.TEST)), record.settings("")
    )
    planned = [(work.name, work.round) for work in counted.stages()]
    assert [(mark.name, mark.round) for mark in record.stages] == planned
