"""A student's own answers in groups: their advantages, what they are rewarded for, and the step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from steerheal import streams
from steerheal.config import FilterSettings, HealSettings, SamplingSettings
from steerheal.errors import UserError
from steerheal.filter.reward import TraitAndRules
from steerheal.heal.checkpoint import Checkpoint
from steerheal.heal.group import Group, advantages, written
from steerheal.heal.round import NOTHING_MOVED, heal
from steerheal.heal.train import Healed, heal_student, training_pairs
from steerheal.measure.free import Answers
from steerheal.measure.poles import expected_logodds
from steerheal.models.chat import text_ids
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states, token_logprobs
from steerheal.pipeline.stage_work import Counted
from steerheal.records import Completion
from steerheal.report import captions
from steerheal.state.values import State, base
from steerheal.streams import stream
from test_filter import GOOD, WIDE, limited
from test_loop import start
from test_train import settings

import tiny

CHAT = tiny.chat()
SHORT = SamplingSettings(tokens=6, temperature=1.0)
ASKED = ["say 0", "say 1", "say 2"]
KEPT = [Completion(prompt=prompt, text="x", tokens=(1,), dose=0, seed=0, ended=True)
        for prompt in (*ASKED, ASKED[0])]  # fmt: skip


class By:
    """A reward that is a function of the answer, of which the filter drops what another names."""

    key = "by"

    def __init__(
        self,
        trait: Callable[[Completion], float],
        dropped: Callable[[Completion], bool] = lambda _: False,
    ) -> None:
        self.of, self.dropped = trait, dropped

    def trait(self, _: ChatModel, answers: Answers) -> list[float]:
        return [self.of(item) for item in answers.completions]

    def kept(self, _: ChatModel, answers: Answers) -> list[bool]:
        return [not self.dropped(item) for item in answers.completions]


EVEN = By(lambda _: 0.25)
LOW = By(lambda item: sum(token < 100 for token in item.tokens) / len(item.tokens))


def how(**changes: Any) -> HealSettings:
    group = {"objective": "group", "barrier": "none", "on_policy": 1, "group": 4, "epochs": 1,
             "rows": 4, "lr": 0.01, "warmup": 0}  # fmt: skip
    return settings(**group | changes)


def healed(reward: By, changed: HealSettings, **more: Any) -> Healed:
    return heal(CHAT, base(), base(), KEPT, changed, number=0, seed=0, sampling=SHORT,
                reward=reward, **more)  # fmt: skip


def said(reward: By, changed: HealSettings) -> Group:
    """What the base writes to be rewarded at the first time of a heal of seed 0."""
    draws_from = stream(0, streams.ON_POLICY, 0) * 1_000_003
    return written(CHAT, base(), ASKED, reward, changed, sampling=SHORT, draws_from=draws_from)


def likeliness(state: State, group: Group) -> float:
    """−Σ A·ln p of the group's answers, per token."""
    with state.entered(CHAT) as reader:
        logs = token_logprobs(reader, training_pairs(reader, group.texts))
    pulled = (a * row.sum().item() for a, row in zip(group.advantages, logs, strict=True))
    return -sum(pulled) / sum(map(len, logs))


# ── advantages ──────────────────────────────────────────────────────────────────────────────────


def test_the_advantages_of_a_group_sum_to_zero_and_equal_rewards_have_none() -> None:
    drawn = torch.randn(9, generator=torch.Generator().manual_seed(3), dtype=torch.float64).tolist()
    rewards, prompts = [*drawn, 0.7, 0.7 + 1e-9, 2.0], [*"abcabcabc", "d", "d", "e"]
    found, equal = advantages(rewards, prompts)
    assert equal == 2 and found[-3:] == [0, 0, 0]
    for prompt in "abc":
        mine = [i for i in range(9) if prompts[i] == prompt]
        assert sum(found[i] for i in mine) == pytest.approx(0, abs=1e-12)
        assert sum(found[i] ** 2 for i in mine) == pytest.approx(len(mine))
        order = sorted(mine, key=lambda i: rewards[i])
        assert order == sorted(mine, key=lambda i: found[i])
    assert advantages([float("nan"), 1.0], ["a", "a"]) == ([0, 0], 1)


def test_what_the_filter_drops_has_the_lower_reward_and_is_counted() -> None:
    odd = By(lambda _: 0.25, lambda item: item.seed % 4 == 1)
    group = said(odd, how())
    assert [a < 0 for a in group.advantages] == [i % 4 == 1 for i in range(12)]
    log = group.log
    assert (log.prompts, log.answers, log.empty, log.equal, log.kept) == (3, 12, 0, 0, 9)
    assert log.trait == 0.25 and log.tokens == sum(len(item.tokens) for item in group.texts)
    free = said(odd, how(group_penalty=0.0))
    assert free.log.equal == 3 and not any(free.advantages)


def test_the_reward_is_the_training_half_s_trait_and_the_filter_s_verdict() -> None:
    texts = [GOOD, " ".join(["again and again"] * 8)]
    items = [
        Completion(prompt="how are you", text=text, tokens=tuple(text_ids(CHAT, text)), dose=0,
                   seed=0, ended=True)
        for text in texts
    ]  # fmt: skip
    states = continuation_states(CHAT, training_pairs(CHAT, items))
    answers, persona = Answers(items, states), tiny.persona()
    limits = limited("tail perplexity", 1e30).model_copy(
        update={"limits": WIDE.limits | {"tail perplexity": 1e30, "loses the thread": 1e30}}
    )
    rules = FilterSettings(kl_spike=1e9)
    reward = TraitAndRules(persona, limits, rules)
    poles = [(pair.positive, pair.negative) for pair in persona.pairs("train")]
    expected = expected_logodds(CHAT, answers, poles).mean(1).tolist()
    assert reward.trait(CHAT, answers) == expected and expected[0] != expected[1]
    assert reward.kept(CHAT, answers) == [True, False]
    strict = TraitAndRules(persona, limits, FilterSettings(kl_spike=1.0))
    assert reward.key != strict.key


# ── the step ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.long
def test_a_step_is_minus_advantage_times_log_probability_and_moves_towards_the_reward() -> None:
    one = how(rows=16)
    group = said(LOW, one)
    found = healed(LOW, one)
    (step,) = found.log.steps
    assert step.ce == pytest.approx(likeliness(base(), group), abs=1e-5)
    assert step.tokens == group.log.tokens and found.log.groups == (group.log,)
    assert found.log.sampled == group.log.tokens
    assert likeliness(base().folded(found.adapter), group) < step.ce - 1e-3
    split = healed(LOW, how(rows=16, accumulate=4))
    assert split.log.steps[0].gradient == pytest.approx(step.gradient, rel=1e-4)


def test_equal_rewards_move_nothing_and_the_record_says_so() -> None:
    found = healed(EVEN, how(on_policy=2))
    assert (found.log.outcome, found.log.reason) == ("rejected", NOTHING_MOVED)
    assert [group.equal for group in found.log.groups] == [3, 3]
    assert all(found.adapter.share(name) == 0 for name in found.adapter.pairs)


@pytest.mark.long
def test_a_heal_that_was_cut_off_goes_on_to_the_same_adapter(tmp_path: Path) -> None:
    class Killed(Exception): ...

    taken: list[int] = []

    def stopping(*_: object) -> None:
        taken.append(1)
        if len(taken) == 5:  # in the second writing
            raise Killed

    changed, file = how(on_policy=2, group=2, rows=2), Checkpoint(tmp_path / "heal")
    with pytest.raises(Killed):
        healed(LOW, changed, checkpoint=file, progress=stopping)
    again, whole = healed(LOW, changed, checkpoint=file), healed(LOW, changed)
    # NaN is unequal to itself, but not as text.
    assert again.log.model_dump_json() == whole.log.model_dump_json()
    assert len(whole.log.steps) == 6 and whole.adapter.rank == 2 * changed.rank
    for name in whole.adapter.pairs:
        assert torch.equal(again.adapter.delta(name), whole.adapter.delta(name))


# ── what is refused ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"group": 1}, "group is 1; give group 2 or more"),
        ({"on_policy": 0}, "give on_policy 1 or more"),
        ({"epochs": 2}, "give epochs 1"),
        ({"mask": 0.1}, "weighs whole answers"),
        ({"subtract": 1.0}, "no unsteered control to subtract"),
    ],
)
def test_settings_that_make_no_group_are_refused(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        how(**changed)


def test_a_group_needs_its_reward_and_no_other_objective_takes_one() -> None:
    for changed, reward in ((how(), None), (settings(), EVEN)):
        with pytest.raises(UserError, match="give `reward` to group"):
            heal(CHAT, base(), base(), KEPT, changed, number=0, seed=0, reward=reward)
    with pytest.raises(UserError, match="give `advantages` to group"):
        heal_student(CHAT, training_pairs(CHAT, KEPT), None, how())


@pytest.mark.slow
def test_a_run_by_groups_makes_what_was_planned_and_records_what_it_wrote(tmp_path: Path) -> None:
    how = {"objective": "group", "on_policy": 2, "group": 3, "barrier": "none", "held_out": 0.0}
    record = start(
        tmp_path, rounds=1, heal=how, control=True, read_prompted=False, check={"doses": ()}
    )
    (row,) = record.rounds
    assert row.heal is not None and row.heal.on_policy == 2
    for group in row.heal.groups:
        assert group.answers + group.empty == 3 * group.prompts
    assert "of 12 groups had no difference in reward" in captions.heal(record)
    assert row.control is not None and "the student's own text" in row.control.reason
    counted = Counted(
        tiny.chat(), tiny.persona(prompts=tiny.prompts(test=tiny.TEST)), record.settings("")
    )
    planned = [(work.name, work.round) for work in counted.stages()]
    assert [(mark.name, mark.round) for mark in record.stages] == planned
