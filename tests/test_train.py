"""Objectives, penalties, gradient pressure, padding and resume of a heal."""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from steerheal import ranks
from steerheal.config import HealSettings, RunConfig, merge
from steerheal.errors import UserError
from steerheal.heal.adapter import training
from steerheal.heal.barrier import position_losses
from steerheal.heal.batches import WASTE, Data, Micro, grouped, micro_batches
from steerheal.heal.checkpoint import Checkpoint
from steerheal.heal.optimiser import Optimiser
from steerheal.heal.spectral import Spectral
from steerheal.heal.train import Healed, diverged, heal_student
from steerheal.heal.trainer import Trainer
from steerheal.models.chat import prompt_ids, text_ids
from steerheal.models.halving import halvings
from steerheal.models.hooks import adding
from steerheal.models.model import ChatModel
from steerheal.models.score import Pair, continuation_states, kl
from steerheal.pipeline.stage_store import Store
from steerheal.pipeline.stages import Stages
from steerheal.records import HealStep
from steerheal.state.fold import Gated, folded
from steerheal.state.values import base
from test_loop import TINY, Silent

import tiny
from tiny import SIZES

Step = Callable[[], dict[str, torch.Tensor]]
SETTINGS = HealSettings(
    barrier="kl_rev",
    rank=4,
    alpha=8,
    rows=4,
    epochs=2,
    lr=5e-3,
    held_out=0.0,
    band=(0.2, 0.8),
    tau=0.0,
    lam=0.5,
)
TEXTS = (
    "warm tea",
    "a blanket for a long and cold evening by the sea",
    "sit",
    "I am here with you",
    "hold on",
    "we go on, slowly, and then a little faster, hand in hand",
    "yes",
    "stay a bit",
)


def settings(**changes: Any) -> HealSettings:
    return HealSettings(**{**SETTINGS.model_dump(), **changes})


def pairs_of(chat: ChatModel) -> list[Pair]:
    # A prompt each, since whole prompts are held out.
    return [
        (prompt_ids(chat, f"say {i}"), [*text_ids(chat, text), chat.end_of_turn()])
        for i, text in enumerate(TEXTS)
    ]


def steered_states(chat: ChatModel, size: float = 1.0) -> list[torch.Tensor]:
    push = torch.randn(SIZES["hidden_size"], generator=torch.Generator().manual_seed(5))
    with adding(chat, {1: size * push}):
        return continuation_states(chat, pairs_of(chat))


def healed(chat: ChatModel, changed: HealSettings = SETTINGS, **more: Any) -> Healed:
    pairs = pairs_of(chat)
    return heal_student(chat, pairs, continuation_states(chat, pairs), changed, **more)


def factors(done: Healed) -> dict[str, torch.Tensor]:
    pairs = done.adapter.pairs
    return {f"{name}.{side}": getattr(pair, side) for name, pair in pairs.items()
            for side in ("down", "up")}  # fmt: skip


def assert_equal(one: Healed, other: Healed) -> None:
    # NaN is unequal to itself, but not as a string.
    assert one.log.model_dump_json() == other.log.model_dump_json()
    ours, theirs = factors(one), factors(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


# ── objective ───────────────────────────────────────────────────────────────────────────────────


def head_of(chat: ChatModel, kind: str) -> ChatModel:
    """The model with a tied head, or with its own, or with one that is not a single product."""
    net, random = chat.net, torch.Generator().manual_seed(7)
    embedding: Any = net.get_input_embeddings().weight
    if kind == "tied":
        head: Any = net.get_output_embeddings()
        head.weight = embedding
    if kind == "two layers":
        wide, width = embedding.shape
        inner, outer = torch.nn.Linear(width, 8), torch.nn.Linear(8, wide)
        for weight in (inner.weight, inner.bias, outer.weight, outer.bias):
            weight.data = torch.randn(weight.shape, generator=random)
        head = torch.nn.Sequential(inner, torch.nn.Tanh(), outer).requires_grad_(False)
        net.set_output_embeddings(head)
    return chat


@pytest.mark.parametrize("kind", ["none", "kl_fwd", "kl_rev"])
@pytest.mark.parametrize("objective", ["sft", "distill", "reverse"])
@pytest.mark.parametrize(
    ("family", "head"),
    [("llama", "tied"), ("llama", "own"), ("llama", "two layers"), ("gemma2", "own"),
     ("phi", "own")],
)  # fmt: skip
def test_losses_and_gradients_equal_the_plain_computation(
    family: str, head: str, objective: str, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = head_of(tiny.chat(family), head)
    random = torch.Generator().manual_seed(0)
    states = torch.randn(11, 32, generator=random, requires_grad=True)
    reference, teacher = (torch.randn(11, 32, generator=random) for _ in range(2))
    targets = torch.randint(0, 259, (11,), generator=random)
    log_p = chat.logits(states).log_softmax(-1)
    with torch.no_grad():
        log_q, log_t = (chat.logits(other).log_softmax(-1) for other in (reference, teacher))
    fits = {"distill": kl(log_t, log_p), "reverse": kl(log_p, log_t)}
    fit = fits.get(objective, -log_p[torch.arange(11), targets])
    d = {"kl_fwd": kl(log_q, log_p), "kl_rev": kl(log_p, log_q)}.get(kind, torch.zeros(11))
    (fit_grad,) = torch.autograd.grad(fit.sum(), states, retain_graph=True)
    d_grad = torch.zeros_like(states)
    if kind != "none":
        (d_grad,) = torch.autograd.grad(d.sum(), states)
    monkeypatch.setattr("steerheal.models.score.chunk_of", lambda _: 4)
    given = teacher if objective in fits else None
    ours = position_losses(
        chat, states, targets, reference, kind, objective=objective, teacher=given
    )
    for mine, plain in (
        (ours.fit, fit),
        (ours.divergence, d),
        (ours.fit_grad, fit_grad),
        (ours.divergence_grad, d_grad),
    ):
        torch.testing.assert_close(mine, plain.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.long
def test_distilling_falls_to_the_teacher_and_needs_one() -> None:
    chat = tiny.chat()
    changed = settings(objective="distill", barrier="none", epochs=30, rows=8, held_out=0.25)
    with pytest.raises(UserError, match="distill needs the teacher"):
        healed(chat, changed)
    with pytest.raises(UserError, match="kl_rev needs the reference"):
        heal_student(chat, pairs_of(chat), None, SETTINGS)
    log = heal_student(chat, pairs_of(chat), None, changed, teacher=steered_states(chat)).log
    assert log.steps[0].ce > 0.01
    assert log.steps[-1].ce < log.steps[0].ce / 2
    assert log.held_out[-1] < log.held_out[0]


@pytest.mark.parametrize("objective", ["distill", "reverse"])
def test_a_teacher_that_is_the_student_asks_for_nothing(objective: str) -> None:
    chat = tiny.chat()
    log = healed(
        chat, settings(objective=objective, epochs=1), teacher=steered_states(chat, 0.0)
    ).log
    assert log.steps[0].ce == pytest.approx(0, abs=1e-6)
    assert log.steps[0].gradient == pytest.approx(0, abs=1e-5)


# ── penalties ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fresh", [True, False])
def test_operator_norms_and_their_gradients_equal_the_dense_ones(fresh: bool) -> None:
    chat, random = tiny.chat(), torch.Generator().manual_seed(3)
    with training(chat, SETTINGS, seed=0) as model:
        layers: list[Any] = [item for item in model.modules() if hasattr(item, "lora_A")]
        if not fresh:  # a start that is not 0: what counts is the change from it
            for layer in layers:
                weight = layer.lora_B["default"].weight
                weight.data = torch.randn(weight.shape, generator=random)
        first = [layer.lora_B["default"].weight @ layer.lora_A["default"].weight
                 for layer in layers]  # fmt: skip
        first = [item.detach() for item in first]
        spectral = Spectral(model)
        for layer in layers:
            weight = layer.lora_B["default"].weight
            weight.data = weight.data + torch.randn(weight.shape, generator=random)
        both = [p for layer in layers for p in (layer.lora_A["default"].weight,
                                                layer.lora_B["default"].weight)]  # fmt: skip
        spectral.norms()
        with torch.enable_grad():
            ours = spectral.norms()
            plain = torch.stack([
                torch.linalg.matrix_norm(
                    layer.scaling["default"]
                    * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight - start),
                    ord=2,
                )
                for layer, start in zip(layers, first, strict=True)
            ])  # fmt: skip
            mine = torch.autograd.grad(ours.sum(), both)
            theirs = torch.autograd.grad(plain.sum(), both)
    torch.testing.assert_close(ours, plain, atol=0, rtol=1e-3)
    for a, b in zip(mine, theirs, strict=True):
        assert (a - b).norm() < 1e-2 * b.norm()


def test_a_fresh_adapter_has_no_norm_and_no_slope() -> None:
    with training(tiny.chat(), SETTINGS, seed=0) as model:
        with torch.enable_grad():
            norms = Spectral(model).norms()
            norms.sum().backward()
        grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert norms.abs().max() == 0
    assert all(grad is not None and grad.abs().max() == 0 for grad in grads)


@pytest.mark.long
@pytest.mark.parametrize("barrier", ["none", "kl_fwd", "kl_rev"])
def test_the_spectral_penalty_goes_with_any_barrier(barrier: str) -> None:
    chat = tiny.chat()
    low, high = (
        healed(chat, settings(barrier=barrier, spectral=weight, epochs=4)) for weight in (1e-6, 1.0)
    )
    assert high.log.steps[-1].spectral < low.log.steps[-1].spectral / 2
    assert high.log.steps[0].spectral == 0
    assert math.isnan(healed(chat, settings(epochs=1)).log.steps[-1].spectral)


def test_weight_decay_is_decoupled_and_goes_with_any_barrier() -> None:
    chat = tiny.chat()
    plain, decayed = (healed(chat, settings(weight_decay=value, epochs=4)) for value in (0.0, 20.0))
    size = [
        sum(item.square().sum() for item in factors(done).values()) for done in (plain, decayed)
    ]
    assert size[1] < size[0] / 2
    # Decoupled: the first step's gradient does not see it.
    assert plain.log.steps[0].gradient == decayed.log.steps[0].gradient


def test_the_schedule_warms_up_falls_and_never_reaches_zero() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    loop = Optimiser({"w": weight}, settings(epochs=5, rows=4, warmup=0.2, lr=1.0), 8)
    rates = []
    for _ in range(loop.total):
        rates.append(loop.lr)
        weight.grad = torch.ones(1)
        loop.apply()
    # w = 2, n = 10: t/2 once, then ½(1 + cos(π(t − 2)/9)).
    assert rates[:2] == [0.5, 1.0]
    assert rates[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 8 / 9)))
    assert min(rates) > 0 and rates[1:] == sorted(rates[1:], reverse=True)


def test_a_weight_that_never_got_a_gradient_is_saved_and_put_back() -> None:
    def fresh() -> dict[str, torch.nn.Parameter]:
        return {name: torch.nn.Parameter(torch.ones(2)) for name in ("used", "unused")}

    named = fresh()
    loop = Optimiser(named, settings(epochs=4, rows=4), 8)
    named["used"].grad = torch.ones(2)
    loop.apply()
    other = fresh()
    again = Optimiser(other, settings(epochs=4, rows=4), 8)
    assert again.fits(loop.state())
    again.restore(loop.state(), loop.done)
    for parts, optimiser in ((named, loop), (other, again)):
        for part in parts.values():
            part.grad = torch.full((2,), 0.5)
        optimiser.apply()
    assert all(torch.equal(named[name], other[name]) for name in named)


# ── pressure ────────────────────────────────────────────────────────────────────────────────────


def test_pressure_is_the_ratio_of_the_gradients_in_the_final_states() -> None:
    chat = tiny.chat()
    pairs, moved = pairs_of(chat), steered_states(chat)
    changed = settings(rows=8, epochs=1, aggregate="mean", lam=0.7)
    step = heal_student(chat, pairs, moved, changed).log.steps[0]
    states = torch.cat(continuation_states(chat, pairs)).requires_grad_(True)
    targets = torch.tensor([token for _, rest in pairs for token in rest])
    log_p = chat.logits(states).log_softmax(-1)
    with torch.no_grad():
        log_q = chat.logits(torch.cat(moved)).log_softmax(-1)
    ce = -log_p.gather(1, targets[:, None]).mean()
    barrier = 0.7 * kl(log_p, log_q).mean()
    (one,) = torch.autograd.grad(ce, states, retain_graph=True)
    (two,) = torch.autograd.grad(barrier, states)
    assert step.ce == pytest.approx(ce.item(), rel=1e-4)
    assert step.barrier == pytest.approx(barrier.item(), rel=1e-4)
    assert step.pressure == pytest.approx((two.norm() / one.norm()).item(), rel=1e-3)


def test_pressure_is_unknown_without_a_barrier_and_zero_below_tau() -> None:
    chat = tiny.chat()
    assert math.isnan(healed(chat, settings(barrier="none")).log.steps[-1].pressure)
    assert healed(chat, settings(tau=1e6)).log.steps[-1].pressure == 0


def test_pressure_does_not_hang_on_the_micro_batches() -> None:
    chat = tiny.chat()
    one, four = (healed(chat, settings(accumulate=n, lr=1e-4)).log.steps for n in (1, 4))
    for a, b in zip(one[1:], four[1:], strict=True):
        assert a.pressure == pytest.approx(b.pressure, rel=1e-2)


# ── padding ─────────────────────────────────────────────────────────────────────────────────────


def test_groups_are_the_fewest_that_keep_padding_low() -> None:
    assert grouped([10, 10, 10, 10]) == [4]
    assert grouped([10, 10, 40, 40]) == [2, 2]
    assert grouped([10, 30, 50]) == [1, 1, 1]
    assert grouped([5, 10, 20, 40]) == [2, 1, 1]
    assert grouped([5, 38, 39, 40]) == [1, 3]
    assert grouped([10, 10, 10, 10], budget=20) == [2, 2]
    assert grouped([30], budget=20) == [1]
    assert grouped([10, 30, 50], launch=59) == [2, 1]
    assert grouped([10, 30, 50], launch=60) == [3]


def test_rows_of_a_step_are_split_by_length_to_little_padding() -> None:
    chat = tiny.chat()
    data = Data(pairs_of(chat), None, None)
    (whole,) = micro_batches(chat, data, range(len(TEXTS)))
    assert len(whole.parts) > 1
    assert 1 - whole.used / whole.read <= WASTE
    saved = sum(part.opening * (len(part.rows) - 1) for part in whole.parts)
    assert saved > 0 and whole.used == sum(data.lengths) - saved
    assert sum(len(part.row) for part in whole.parts) == len(whole.targets)
    assert [len(part.parts) > 0 for part in micro_batches(chat, data, range(8), 4)] == [True] * 4


@contextmanager
def stepping(chat: ChatModel, data: Data, changed: HealSettings) -> Iterator[Step]:
    """What reads one step over all rows and gives its gradient by parameter."""
    with training(chat, changed, seed=0) as model:
        random = torch.Generator().manual_seed(1)
        for weight in model.parameters():
            if weight.requires_grad:  # a fresh adapter's own output is 0
                weight.data += 0.1 * torch.randn(weight.shape, generator=random)
        trainer = Trainer(chat, model, data, changed, lam=0.5, rows=8, seed=0)
        trainer._loop.apply = lambda: 0.0

        def step() -> dict[str, torch.Tensor]:
            trainer._step(list(range(8)), 0, 0)
            weights = model.named_parameters()
            return {name: weight.grad for name, weight in weights if weight.grad is not None}

        yield step


def step_gradients(chat: ChatModel, data: Data, changed: HealSettings) -> dict[str, torch.Tensor]:
    """The gradient of one step over all rows, by parameter."""
    with stepping(chat, data, changed) as step:
        return step()


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys() and one
    largest = max(grad.abs().max().item() for grad in other.values())
    for name, grad in other.items():
        torch.testing.assert_close(one[name], grad, atol=1e-6 * max(1, largest), rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_reading_a_shared_opening_once_gives_the_same_gradients(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = tiny.chat(family)
    data = Data(pairs_of(chat), steered_states(chat), None)
    changed = settings(band=(0.0, 1.0))
    assert any(part.opening for part in micro_batches(chat, data, range(8))[0].parts)
    shared = step_gradients(chat, data, changed)
    monkeypatch.setattr("steerheal.models.batch.SHARED", 10_000)
    assert not any(part.opening for part in micro_batches(chat, data, range(8))[0].parts)
    assert_close(shared, step_gradients(chat, data, changed))


def test_a_step_that_memory_does_not_hold_is_read_in_halves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat = tiny.chat()
    data, changed = Data(pairs_of(chat), steered_states(chat), None), settings(barrier="kl_rev")
    whole, read, most = step_gradients(chat, data, changed), Micro.states, 2

    def within(micro: Micro, model: ChatModel) -> torch.Tensor:
        if sum(len(part.rows) for part in micro.parts) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(micro, model)

    monkeypatch.setattr(Micro, "states", within)
    with halvings() as found:
        assert_close(step_gradients(chat, data, changed), whole)
    assert found == [4, 2]
    most = 0
    with pytest.raises(torch.OutOfMemoryError), halvings() as found:
        step_gradients(chat, data, changed)
    assert found == [4, 2, 1]


class Processes:
    """Two processes of a run as threads, which hand each other what `torch.distributed` would."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._own, self._gate = threading.local(), threading.Barrier(2, timeout=30)
        self._hands: list[Any] = [None, None]
        patch.setattr(ranks, "_joined", self)
        for name in ("all_gather_object", "broadcast_object_list", "all_reduce"):
            patch.setattr(distributed, name, getattr(self, name))

    def __getitem__(self, what: str) -> int:
        return self._own.rank if what == "rank" else {"world": 2, "alike": False}[what]

    def _met(self, value: Any) -> list[Any]:
        self._hands[self._own.rank] = value
        self._gate.wait()
        found = list(self._hands)
        self._gate.wait()
        return found

    def all_gather_object(self, found: list[Any], value: Any) -> None:
        found[:] = self._met(value)

    def broadcast_object_list(self, box: list[Any], src: int) -> None:
        box[:] = self._met(list(box))[src]

    def all_reduce(self, tensor: torch.Tensor) -> None:
        tensor.copy_(sum(self._met(tensor.clone())))

    def run(self, steps: Sequence[Step]) -> list["Future[dict[str, torch.Tensor]]"]:
        def own(rank: int) -> dict[str, torch.Tensor]:
            self._own.rank = rank
            return steps[rank]()

        with ThreadPoolExecutor(2) as pool:
            return [pool.submit(own, rank) for rank in range(2)]


@pytest.mark.parametrize("backward", [False, True])
def test_where_one_process_runs_out_of_memory_all_read_the_step_in_halves(
    backward: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    chats, changed = (tiny.chat(), tiny.chat()), settings(barrier="kl_rev", spectral=0.1)
    data = Data(pairs_of(chats[0]), steered_states(chats[0]), None)
    whole, read, most = step_gradients(chats[0], data, changed), Micro.states, 2

    def within(micro: Micro, model: ChatModel) -> torch.Tensor:
        here = torch.is_grad_enabled() == backward
        if here and ranks.rank() == 1 and sum(len(part.rows) for part in micro.parts) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(micro, model)

    monkeypatch.setattr(Micro, "states", within)
    processes = Processes(monkeypatch)
    with ExitStack() as stack:
        steps = [stack.enter_context(stepping(chat, data, changed)) for chat in chats]
        with halvings() as found:
            one, other = (ended.result() for ended in processes.run(steps))
        assert found == [2, 2]
        assert_close(one, whole)
        assert all(torch.equal(one[name], grad) for name, grad in other.items())
        most = 0
        ends = [ended.exception() for ended in processes.run(steps)]
    assert [str(end) for end in ends] == ["process 1: CUDA out of memory."] * 2


@pytest.mark.parametrize("objective", ["sft", "distill"])
def test_splitting_by_length_changes_nothing_but_the_padding(
    objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = tiny.chat()
    changed = settings(held_out=0.25, objective=objective)

    def run() -> tuple[Healed, dict[str, torch.Tensor]]:
        """A heal, and the gradient of a whole step."""
        pairs = pairs_of(chat)
        given, reference = steered_states(chat), steered_states(chat, 0.5)
        data = Data(pairs, reference, given if objective == "distill" else None)
        grads = step_gradients(chat, data, changed)
        return heal_student(chat, pairs, reference, changed, teacher=given), grads

    split, our_grads = run()
    monkeypatch.setattr("steerheal.heal.batches.WASTE", 1.0)
    whole, grads = run()
    assert split.log.padding <= WASTE < whole.log.padding
    assert_close(our_grads, grads)
    a, b = split.log.steps[0], whole.log.steps[0]
    for field in ("ce", "divergence", "barrier", "gradient", "pressure"):
        assert getattr(a, field) == pytest.approx(getattr(b, field), rel=1e-5, abs=1e-6)
    assert split.log.held_out[0] == pytest.approx(whole.log.held_out[0], rel=1e-6)
    assert [step.tokens for step in split.log.steps] == [step.tokens for step in whole.log.steps]


# ── resume ──────────────────────────────────────────────────────────────────────────────────────

LONG = settings(epochs=3, held_out=0.25, spectral=0.01, weight_decay=0.1)


class Cut(Exception):
    """The process is killed."""


def cut_in(epoch: int) -> Callable[[HealStep, int], None]:
    def progress(step: HealStep, _of: int) -> None:
        if step.epoch == epoch:
            raise Cut

    return progress


@pytest.mark.long
@pytest.mark.parametrize(
    ("objective", "adapter"), [("sft", "lora"), ("distill", "lora"), ("sft", "pissa")]
)
def test_a_heal_cut_off_after_an_epoch_ends_the_same_bit_for_bit(
    tmp_path: Path, objective: str, adapter: str
) -> None:
    chat, said = tiny.chat(), []
    decay = 0.0 if adapter == "pissa" else 0.1
    changed = settings(
        epochs=3, held_out=0.25, spectral=0.01, weight_decay=decay, objective=objective,
        adapter=adapter,
    )  # fmt: skip
    teacher = steered_states(chat)
    straight = healed(chat, changed, teacher=teacher, seed=2)
    scratch = Checkpoint(tmp_path / "scratch", said.append)
    seen: list[int] = []
    for epoch in (0, 1, 2):
        with pytest.raises(Cut):
            healed(
                chat, changed, teacher=teacher, seed=2, checkpoint=scratch, progress=cut_in(epoch)
            )
        assert scratch.path.exists() == (epoch > 0)
    done = healed(
        chat, changed, teacher=teacher, seed=2, checkpoint=scratch,
        progress=lambda step, _of: seen.append(step.epoch),
    )  # fmt: skip
    assert_equal(done, straight)
    assert set(seen) == {2}
    assert said == ["heal · going on after epoch 1", "heal · going on after epoch 2"]
    again = healed(chat, changed, teacher=teacher, seed=2, checkpoint=scratch)
    assert_equal(again, straight)
    scratch.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.parametrize("damage", ["short", "empty", "text", "a bit", "another heal"])
def test_a_damaged_or_foreign_scratch_file_is_told_of_and_ignored(
    tmp_path: Path, damage: str
) -> None:
    chat, said = tiny.chat(), []
    changed = LONG.model_copy(update={"epochs": 2})
    scratch = Checkpoint(tmp_path / "scratch", said.append)
    straight = healed(chat, changed, seed=1, checkpoint=scratch)
    whole = bytearray(scratch.path.read_bytes())
    match damage:
        case "short":
            scratch.path.write_bytes(whole[: len(whole) // 2])
        case "empty":
            scratch.path.write_bytes(b"")
        case "text":
            scratch.path.write_text("not tensors")
        case "a bit":
            whole[-100] ^= 1
            scratch.path.write_bytes(whole)
        case _:
            healed(chat, changed, seed=3, checkpoint=scratch)
            said.clear()
    assert_equal(healed(chat, changed, seed=1, checkpoint=scratch), straight)
    assert len(said) == 1 and said[0].endswith("starting over")


def test_a_disk_that_refuses_costs_only_the_way_back(tmp_path: Path) -> None:
    chat, said = tiny.chat(), []
    (tmp_path / "file").write_text("")
    scratch = Checkpoint(tmp_path / "file" / "scratch", said.append)
    assert_equal(healed(chat, SETTINGS, checkpoint=scratch), healed(chat, SETTINGS))
    assert len(said) == SETTINGS.epochs and "not saved after epoch 1" in said[0]


class CutOnce(Silent):
    """A watcher that is killed in the second epoch, and hears what is noted."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.cut = True

    def heal_step(self, number: int, step: Any, of: int) -> None:  # noqa: ARG002
        if self.cut and step.epoch == 1:
            raise Cut

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.long
@pytest.mark.parametrize("objective", ["sft", "distill"])
def test_a_run_s_heal_goes_on_and_leaves_no_scratch_file(tmp_path: Path, objective: str) -> None:
    heal = {"objective": objective, "epochs": 3, "barrier": "none", "rank": 2}
    config = RunConfig.model_validate(merge(TINY, {"heal": heal}))

    def result(folder: Path, watcher: Any) -> Healed:
        store = Store(folder, "run", notify=lambda _: None)
        stages = Stages(config, tiny.persona(), tiny.chat(), store, watcher)
        teacher = base().steered(stages.vector(0, base()), 1.0)
        found = stages.harvest(0, teacher)
        return stages.healed(0, base(), teacher, found)

    watcher = CutOnce()
    with pytest.raises(Cut):
        result(tmp_path / "cut", watcher)
    assert len(list((tmp_path / "cut" / ".stages").glob(".unfinished-heal-*"))) == 1
    watcher.cut = False
    done = result(tmp_path / "cut", watcher)
    assert watcher.said == ["heal · going on after epoch 1"]
    assert not list((tmp_path / "cut" / ".stages").glob(".unfinished*"))
    assert_equal(done, result(tmp_path / "straight", Silent()))
    assert done.log.steps[0].ce > 1e-3  # a steered teacher is not the student


@pytest.mark.long
@pytest.mark.parametrize("reference", ["prev", "base"])
def test_a_run_s_anchor_is_the_reference_on_text_that_no_persona_is_about(
    tmp_path: Path, reference: str
) -> None:
    heal = {"epochs": 3, "barrier": "none", "rank": 2, "lr": 0.05, "reference": reference}

    def last(anchor: float) -> HealStep:
        changes = {"heal": heal | {"anchor": anchor, "anchor_rows": 2}}
        config = RunConfig.model_validate(merge(TINY, changes))
        store = Store(tmp_path, f"{anchor:g}", notify=lambda _: None)
        stages = Stages(config, tiny.persona(), tiny.chat(), store, Silent())
        teacher = base().steered(stages.vector(0, base()), 1.0)
        return stages.healed(0, base(), teacher, stages.harvest(0, teacher)).log.steps[-1]

    assert math.isnan(last(0.0).anchor)
    assert 0 < last(10.0).anchor < last(0.01).anchor


# ── divergence ──────────────────────────────────────────────────────────────────────────────────


def steps_of(ces: list[float]) -> list[HealStep]:
    return [
        HealStep(
            step=i, epoch=0, ce=ce, divergence=math.nan, barrier=0.0, lr=0.1, gradient=1.0, tokens=9
        )
        for i, ce in enumerate(ces)
    ]


@pytest.mark.parametrize(
    ("ces", "held_out", "said"),
    [
        ([2.7, 6.0, 8.0, 8.2], [2.6, 8.1], "CE 2.70 → 8.20 and held-out CE 2.60 → 8.10"),
        ([2.7, 6.0, 8.0, 8.2], [math.nan], "CE 2.70 → 8.20 nats"),
        ([2.7, 6.0, 8.0, 2.9], [2.6, 2.65], ""),  # a spike that came back
        # Forty times the default rate on the embedded model: high, and not back.
        ([2.8, 2.5, 5.1, 5.2, 5.0, 3.9], [3.3, 5.7, 3.5], "CE 2.80 → 3.90 and held-out CE 3.30"),
        ([2.7, 2.6, 3.0, 3.1], [math.nan], ""),  # within what steps scatter by
        ([2.0, 2.5, 2.5, 2.7], [2.6, 2.3], ""),  # an easy first step
        ([2.7, 2.0, 1.0, 0.5], [2.6, 3.6], ""),  # overfit, which check 3 names
        ([2.7, 2.6], [2.6, math.nan], "CE 2.70 → 2.60 and held-out CE 2.60 → nan"),
        ([2.7], [2.6, 9.1], "held-out CE 2.60 → 9.10"),  # broken by its only update
        ([2.7], [2.6, 2.5], ""),
        ([2.7], [math.nan, math.nan], ""),  # nothing to hold it against
        ([], [], ""),
    ],
)
def test_a_heal_that_unlearned_is_told_from_one_that_did_not(
    ces: list[float], held_out: list[float], said: str
) -> None:
    found = diverged(steps_of(ces), held_out, 0.1)
    assert said in found
    assert bool(said) == bool(found)
    assert not said or "learning rate 0.1 is too high" in found


@pytest.mark.long
def test_a_learning_rate_a_hundred_times_too_high_rejects_the_heal() -> None:
    chat = tiny.chat()
    # A random model's cross-entropy can only rise where it is taught first.
    taught = heal_student(chat, pairs_of(chat), None, settings(barrier="none", epochs=8, lr=0.02))
    with folded(chat, [Gated(taught.adapter, 1.0)]):
        fine = heal_student(chat, pairs_of(chat), None, settings(barrier="none"))
        wild = heal_student(chat, pairs_of(chat), None, settings(barrier="none", lr=0.5))
    assert fine.log.outcome == "trained"
    assert wild.log.outcome == "rejected"
    assert "learning rate 0.5 is too high" in wild.log.reason


@pytest.mark.parametrize("objective", ["sft", "distill"])
def test_a_heal_reads_nothing_but_the_training_student(objective: str) -> None:
    chat = tiny.chat()
    pairs = pairs_of(chat)
    states = continuation_states(chat, pairs)
    passes: list[bool] = []
    seen = chat.decoder.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    how = settings(objective=objective, rows=len(pairs))
    done = heal_student(chat, pairs, states, how, teacher=states)
    seen.remove()
    # The reference and the teacher are states: no forward without gradients, in any epoch.
    assert len(passes) >= len(done.log.steps) and all(passes)
