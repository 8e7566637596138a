"""Where memory ends over logits or in a forward with gradients: less at once, and the same read."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from steerheal.commands.workers import workers_of
from steerheal.filter.scores import scored_by
from steerheal.heal.mask import fitted
from steerheal.measure import coherence, forced_choice, likelihood
from steerheal.measure.even import even_shares
from steerheal.measure.fisher import fisher
from steerheal.measure.judge import Exchange, judge
from steerheal.measure.poles import expected_logodds
from steerheal.measure.spill import apart
from steerheal.models import gpu_share
from steerheal.models.batch import free_bytes
from steerheal.models.halving import halvings
from steerheal.models.model import ChatModel
from steerheal.models.score import in_chunks
from steerheal.state.fold import assert_alive
from steerheal.state.values import base
from steerheal.steer.methods import pulled_back, trait_per_kl
from test_fisher import PERSONA, grounded, pushed, source
from test_forced_choice import ASKED, short
from test_poles import DOWN, UP, written
from test_train import healed, pairs_of, settings

import tiny

MOST = 3
"""Positions whose logits fit, and rows of a forward with gradients."""
STEERED = base().steered(pushed(1.0), 1.0)


def trained(chat: ChatModel) -> list[float]:
    """A heal's fits, held out and not, and what its adapter is seen to do."""
    chosen = settings(barrier="kl_rev", mask=0.3, epochs=1, held_out=0.25)
    done = healed(chat, chosen, fitted=fitted(chat, pairs_of(chat), chosen, 0))
    prefix, rest = pairs_of(chat)[0]
    alive = assert_alive(chat, done.adapter, [*prefix, *rest])
    return [*done.log.held_out, *(step.ce for step in done.log.steps), alive.scale]


def scores(chat: ChatModel) -> list[list[float]]:
    said = written(chat)
    found = scored_by(chat, said.completions, PERSONA, said.states)
    return [[*one.logprobs, *one.entropies, *one.kls, one.logodds] for one in found]


def vignette_rows(rows: Any) -> list[list[float]]:
    return [[*row.score, row.p_ans_any, row.nll_prefill] for row in rows]


DOORS: dict[str, Callable[[ChatModel], Any]] = {
    "poles": lambda chat: expected_logodds(chat, written(chat), [(UP, DOWN)]).tolist(),
    "filter": scores,
    "spill": lambda chat: apart(chat, STEERED, written(chat).completions),
    "even": lambda chat: [
        one.value for one in even_shares(chat, base(), STEERED, [1.0], written(chat).completions)
    ],
    "fisher": lambda chat: [
        (one.kl, one.cosine.value, one.held_out.value)
        for one in fisher(chat, grounded(chat), [STEERED])
    ],
    "slopes": lambda chat: trait_per_kl.slopes(source(chat)).gain.tolist(),
    "pulled back": lambda chat: pulled_back.directions(source(chat, pull=1))[1].tolist(),
    "canary": lambda chat: [
        (row.p_ans_any, row.nll_prefill) for row in coherence.read(chat, ["Ice is hot."])
    ],
    "likelihood": lambda chat: vignette_rows(likelihood.read(chat, ASKED[:1])),
    "forced choice": lambda chat: vignette_rows(
        forced_choice.read(chat, ASKED, short(), think=1).rows
    ),
    "judge": lambda chat: [one.fit for one in judge(chat, [Exchange("How?", "Like so.")])],
    "heal": trained,
}


@pytest.mark.parametrize("door", DOORS)
def test_where_memory_ends_less_is_read_at_once_and_the_same_is_found(
    door: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, logits, hidden = tiny.chat(), ChatModel.logits, ChatModel.hidden
    whole = DOORS[door](chat)

    def of_few(self: ChatModel, states: Tensor) -> Tensor:
        if states.numel() > MOST * states.shape[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits(self, states)

    def narrow(self: ChatModel, ids: Tensor, **inputs: Any) -> Tensor:
        if door == "pulled back" and torch.is_grad_enabled() and len(ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return hidden(self, ids, **inputs)

    monkeypatch.setattr(ChatModel, "logits", of_few)
    monkeypatch.setattr(ChatModel, "hidden", narrow)
    with halvings() as found:
        again = DOORS[door](chat)
    assert found and min(found) <= MOST
    torch.testing.assert_close(torch.tensor(again), torch.tensor(whole), atol=1e-4, rtol=1e-3)


def test_chunks_stay_small_once_memory_has_run_out_and_one_position_may_fail() -> None:
    chat, asked = tiny.chat(), list[int]()

    def work(here: slice, most: int = 2) -> list[int]:
        asked.append(here.stop - here.start)
        if asked[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(range(here.start, here.stop))

    assert [i for part in in_chunks(chat, 7, work) for i in part] == list(range(7))
    assert asked == [7, 4, 2, 2, 2, 1]
    with pytest.raises(torch.OutOfMemoryError):
        in_chunks(chat, 3, lambda here: work(here, 0))
    with pytest.raises(RuntimeError, match="else"):
        in_chunks(chat, 3, lambda _: (_ for _ in ()).throw(RuntimeError("else")))
    assert in_chunks(chat, 0, work) == []


@pytest.mark.parametrize(
    ("workers", "devices", "part"), [(2, 1, 0.45), (5, 2, 0.3), (2, 2, None), (8, 0, None)]
)
def test_workers_on_one_gpu_take_even_parts_of_its_memory(
    workers: int, devices: int, part: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    does = workers_of(workers, "")
    assert isinstance(does, partial)
    said = does.keywords["also"](workers)
    assert {name: float(value) for name, value in said.items()} == (
        {gpu_share.SHARE: part} if part else {}
    )
    taken = []
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda *given: taken.append(given)
    )
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    for name in ("cpu", "cuda:1", "cuda"):
        gpu_share.take_share(torch.device(name))
    # PyTorch takes a device without a number only as None.
    assert taken == ([(part, 1), (part, None)] if part else [])


@pytest.mark.parametrize(
    ("part", "free", "left"), [(1.0, 60, 64), (0.25, 60, 19), (0.25, 3, 7), (0.05, 60, 4)]
)
def test_what_is_free_ends_with_a_worker_s_part(
    part: float, free: int, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 100 bytes this process holds 10, of which it uses 6."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 10)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 6)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: part)
    assert free_bytes(torch.device("cuda")) == left
