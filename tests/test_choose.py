"""Best of n: which of several kept draws is trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import test_steer
from steerheal.config import FilterSettings
from steerheal.filter.choose import chosen, trait, values
from steerheal.measure import free
from steerheal.personas import Pair, Paraphrases
from steerheal.pipeline.stage_work import Counted
from steerheal.records import Completion, Harvest, Judged
from steerheal.store import read_harvest
from test_loop import start

import tiny

POOL = test_steer.walked(99.0, want=48)


def by_seed(completions: Sequence[Completion]) -> list[float]:
    """The earlier draw is the better one."""
    return [-float(item.seed) for item in completions]


def test_best_of_1_is_the_pool() -> None:
    assert chosen(POOL.judged, 1, by_seed) == list(POOL.judged)


def test_of_every_prompt_s_draws_the_best_that_was_kept_is_taken() -> None:
    lost = POOL.judged[0].verdict.model_copy(update={"kept": False})
    rows = [POOL.judged[0].model_copy(update={"verdict": lost}), *POOL.judged[1:9]]
    found = chosen(rows, 3, by_seed)
    assert [row.passed_over for row in found] == [False, False, True] + [False, True, True] * 2
    assert [row.completion for row in found] == [row.completion for row in rows]


def test_a_walk_draws_each_prompt_so_often_and_counts_prompts_that_are_answered() -> None:
    def first(rows: Sequence[Judged]) -> list[Judged]:
        return chosen(rows, 4, by_seed)

    found: Harvest = test_steer.walked(0.8, want=10, draws=4, choose=first)
    walk, rest = found.judged[:12], found.judged[12:]
    assert not any(row.passed_over for row in walk)
    for start_ in range(0, len(rest), 4):
        group = rest[start_ : start_ + 4]
        drawn = {(row.completion.prompt, row.completion.dose) for row in group}
        assert len(drawn) == 1
        assert [row.passed_over for row in group] == [False, True, True, True]
    assert len(found.kept()) >= 10 and found.passed_over == 3 * len(found.kept())


def test_the_trait_is_the_mean_over_the_training_half_alone() -> None:
    chat = tiny.chat()
    said = [
        item.model_copy(update={"tokens": (5, 9, 7 + i)}) for i, item in enumerate(POOL.kept(3))
    ]
    pairs = [Pair(positive=f"Be warm {i}.", negative=f"Be cold {i}.") for i in range(3)]
    persona = tiny.persona(
        paraphrases=Paraphrases(train=tuple(pairs[:2]), held_out=tuple(pairs[2:]))
    )
    both = [free.pole_logprobs(chat, said, pair) for pair in pairs[:2]]
    means = [
        sum(free.logodds(up[i], down[i], item.tokens) for up, down in both) / 2
        for i, item in enumerate(said)
    ]
    assert trait(chat, said, persona) == pytest.approx(means)
    by_trait = values(FilterSettings(best_of=3), chat, persona, seed=1)
    assert by_trait(said) == pytest.approx(means)


def test_chance_is_seeded() -> None:
    settings = FilterSettings(best_of=3, pick="random")
    chat, persona = tiny.chat(), tiny.persona()
    once, again, other = (values(settings, chat, persona, seed)(POOL.kept(5)) for seed in (1, 1, 2))
    assert once == again != other


@pytest.mark.slow
def test_a_run_trains_on_the_best_and_says_how_many_it_passed_over(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"rounds": 1, "read_steered": False, "check": {"doses": ()}}
    record = start(tmp_path, filter={"best_of": 2}, **changes)
    found = read_harvest(tmp_path / "run", 0)
    assert record.rounds[0].passed_over == found.passed_over > 0
    assert record.rounds[0].kept == len(found.kept())
    other = start(tmp_path, "other", filter={"best_of": 2, "pick": "random"}, **changes)
    made = [mark.name for mark in other.stages if not mark.reused]
    assert made[0] == "harvest" and other.rounds[0].kept == record.rounds[0].kept
    counted = Counted(tiny.chat(), record.whose(tmp_path), record.settings(tmp_path))
    plain = Counted(tiny.chat(), record.whose(tmp_path), record.settings(tmp_path).model_copy(
        update={"filter": record.settings(tmp_path).filter.rules}
    ))  # fmt: skip
    pair = [
        next(one.work for one in each.stages() if one.name == "harvest")
        for each in (counted, plain)
    ]
    assert pair[0].sampled > 1.5 * pair[1].sampled
