"""Barrier, adapter, training, fold, export."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from steerheal.config import HealSettings, ModelSettings
from steerheal.errors import UserError
from steerheal.heal.adapter import target_names, training
from steerheal.heal.barrier import hinge_weights, position_losses
from steerheal.heal.barriers.barrier import find
from steerheal.heal.export import export_merged, export_peft
from steerheal.heal.train import Healed, heal_student, split
from steerheal.models import score
from steerheal.models.chat import prompt_ids, text_ids
from steerheal.models.load import load
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states, kl
from steerheal.state.adapter import Adapter
from steerheal.state.factors import Pair
from steerheal.state.fold import Gated, attached, concatenated, folded, merged
from steerheal.tables import AGGREGATES

import tiny

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
    "a blanket",
    "sit with me",
    "I am here",
    "hold on",
    "we go on",
    "yes",
    "stay a bit",
)


def pairs_of(chat: ChatModel) -> list[score.Pair]:
    return [
        (prompt_ids(chat, f"say {i}"), [*text_ids(chat, text), chat.end_of_turn()])
        for i, text in enumerate(TEXTS)
    ]


def healed(chat: ChatModel, settings: HealSettings = SETTINGS, seed: int = 0) -> Healed:
    pairs = pairs_of(chat)
    return heal_student(chat, pairs, continuation_states(chat, pairs), settings, seed=seed)


def logits(chat: ChatModel, text: str = "say something") -> torch.Tensor:
    with torch.no_grad():
        return chat.net(input_ids=torch.tensor([prompt_ids(chat, text)])).logits


def same(one: Adapter, other: Adapter) -> bool:
    return all(
        torch.equal(one.pairs[name].down, other.pairs[name].down)
        and torch.equal(one.pairs[name].up, other.pairs[name].up)
        for name in one.pairs
    )


# ── barrier ─────────────────────────────────────────────────────────────────────────────────────


def divergence(kind: str, student: Tensor, reference: Tensor) -> Tensor:
    """D of a barrier, which may write over what it is given."""
    barrier = find(kind)
    assert barrier is not None
    return barrier.slope(student.clone(), student.exp(), reference.clone())[0]


def aggregated(kind: str, values: Tensor) -> Tensor:
    return AGGREGATES.find(kind)(values)


def test_divergences_match_a_hand_worked_example() -> None:
    # p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2)
    # KL(p‖q) = ½ ln 2 + 0 + ¼ ln ½ = ¼ ln 2; KL(q‖p) is the same by symmetry of this pair.
    # With r = (1/2, 1/2, 0⁺): KL(p‖r) has ¼ ln(½) and a huge last term.
    p, q = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.25, 0.5]]).log()
    assert divergence("kl_rev", p, q).item() == pytest.approx(0.25 * math.log(2), abs=1e-6)
    r = torch.tensor([[0.7, 0.2, 0.1]]).log()
    forward = 0.7 * math.log(0.7 / 0.5) + 0.2 * math.log(0.2 / 0.25) + 0.1 * math.log(0.1 / 0.25)
    reverse = 0.5 * math.log(0.5 / 0.7) + 0.25 * math.log(0.25 / 0.2) + 0.25 * math.log(0.25 / 0.1)
    assert divergence("kl_fwd", p, r).item() == pytest.approx(forward, abs=1e-6)
    assert divergence("kl_rev", p, r).item() == pytest.approx(reverse, abs=1e-6)
    assert find("none") is None


@pytest.mark.parametrize("kind", ["kl_fwd", "kl_rev"])
def test_the_divergence_of_a_distribution_from_itself_is_zero(kind) -> None:
    p = torch.randn(5, 11, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    assert divergence(kind, p, p).abs().max() == 0


def test_aggregates_match_hand_worked_numbers() -> None:
    d = torch.tensor([0.0, 0.0, 3.0, 1.0])
    assert aggregated("mean", d).item() == 1.0
    assert aggregated("rmse", d).item() == pytest.approx(math.sqrt(10 / 4))
    assert aggregated("max", d).item() == 3.0
    assert aggregated("p95", d).item() == pytest.approx(1 + 0.85 * 2)  # place 2.85 between 1 and 3


def test_a_short_loop_lifts_the_rmse_where_the_mean_hides_it() -> None:
    d = torch.full((60,), 0.02)
    d[20:24] = 5.6
    assert aggregated("mean", d) < 0.5 < 1.0 < aggregated("rmse", d)


@pytest.mark.parametrize("kind", ["mean", "rmse", "p95", "max"])
def test_the_barrier_is_zero_below_tau_and_grows_by_lambda_above_it(kind) -> None:
    d = torch.tensor([0.1, 0.4, 0.2])
    operating, barrier, weights = hinge_weights(kind, d, 2.0, 0.5)
    assert barrier == 0 and weights.abs().sum() == 0
    operating, barrier, weights = hinge_weights(kind, d, 2.0, 0.05)
    assert barrier == pytest.approx(2.0 * (operating - 0.05), rel=1e-5)
    # Every aggregate here is homogeneous of degree 1: Σ Dᵢ·∂agg/∂Dᵢ = agg.
    assert (weights * d).sum().item() == pytest.approx(2.0 * operating, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi"])
@pytest.mark.parametrize("kind", ["kl_fwd", "kl_rev"])
def test_chunked_losses_and_gradients_equal_the_plain_computation(
    family: str, kind, monkeypatch
) -> None:
    chat = tiny.chat(family)
    random = torch.Generator().manual_seed(0)
    states = torch.randn(11, 32, generator=random, requires_grad=True)
    reference = torch.randn(11, 32, generator=random)
    targets = torch.randint(0, 259, (11,), generator=random)
    log_p = chat.logits(states).log_softmax(-1)
    with torch.no_grad():
        log_q = chat.logits(reference).log_softmax(-1)
    ce = -log_p[torch.arange(11), targets]
    d = {"kl_fwd": kl(log_q, log_p), "kl_rev": kl(log_p, log_q)}[kind]
    (ce_grad,) = torch.autograd.grad(ce.sum(), states, retain_graph=True)
    (d_grad,) = torch.autograd.grad(d.sum(), states)
    monkeypatch.setattr("steerheal.models.score.chunk_of", lambda _: 4)
    ours = position_losses(chat, states, targets, reference, kind)
    for mine, plain in (
        (ours.fit, ce),
        (ours.divergence, d),
        (ours.fit_grad, ce_grad),
        (ours.divergence_grad, d_grad),
    ):
        torch.testing.assert_close(mine, plain.detach(), atol=1e-5, rtol=1e-4)


# ── training ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_training_learns_and_leaves_the_model_as_it_was(family: str) -> None:
    chat = tiny.chat(family)
    before = logits(chat)
    names = [name for name, _ in chat.net.named_modules()]
    result = healed(chat, SETTINGS.model_copy(update={"epochs": 4, "barrier": "none"}))
    assert torch.equal(logits(chat), before)
    assert [name for name, _ in chat.net.named_modules()] == names
    assert not any(p.requires_grad for p in chat.net.parameters())
    assert not chat.net.training
    assert result.log.steps[-1].ce < result.log.steps[0].ce
    with folded(chat, [Gated(result.adapter)]):
        assert not torch.equal(logits(chat), before)
    if family == "gemma3-multimodal":
        assert all("language_model" in name for name in result.adapter.pairs)


def test_only_blocks_inside_the_band_get_adapters() -> None:
    chat = tiny.chat()
    names = target_names(chat, SETTINGS)
    assert {int(name.split(".")[2]) for name in names} == {1, 2}
    assert len(names) == 2 * 7


def test_the_model_is_put_back_when_training_fails() -> None:
    chat = tiny.chat()
    before = logits(chat)
    with pytest.raises(RuntimeError, match="inside"), training(chat, SETTINGS, seed=0):
        raise RuntimeError("inside")
    assert torch.equal(logits(chat), before)
    assert not any("lora" in name for name, _ in chat.net.named_modules())


def test_the_same_seed_gives_the_same_adapter_and_another_seed_another() -> None:
    chat = tiny.chat()
    one, two, three = healed(chat), healed(chat), healed(chat, seed=1)
    assert same(one.adapter, two.adapter) and one.log == two.log
    assert not same(one.adapter, three.adapter)


def test_lambda_zero_equals_no_barrier_bit_for_bit() -> None:
    chat = tiny.chat()
    none = healed(chat, SETTINGS.model_copy(update={"barrier": "none"}))
    zero = healed(chat, SETTINGS.model_copy(update={"lam": 0.0}))
    assert same(none.adapter, zero.adapter)
    assert math.isnan(none.log.steps[-1].divergence)
    assert zero.log.steps[-1].divergence > 0


@pytest.mark.long
@pytest.mark.parametrize("aggregate", ["mean", "rmse", "p95", "max"])
@pytest.mark.parametrize("barrier", ["kl_fwd", "kl_rev"])
def test_one_step_of_four_equals_four_accumulated_steps_of_one(barrier, aggregate) -> None:
    chat = tiny.chat()
    # Held-out order and the adapter's start hang on the seed, so only the split differs.
    settings = SETTINGS.model_copy(update={"barrier": barrier, "aggregate": aggregate, "lr": 1e-3})
    whole = healed(chat, settings)
    split = healed(chat, settings.model_copy(update={"accumulate": 4}))
    assert whole.log.steps[-1].divergence > 1e-4
    for a, b in zip(whole.log.steps, split.log.steps, strict=True):
        assert a.ce == pytest.approx(b.ce, rel=1e-4)
        assert a.divergence == pytest.approx(b.divergence, rel=1e-3, abs=1e-6)
        assert a.gradient == pytest.approx(b.gradient, rel=1e-3)


@pytest.mark.long
def test_the_barrier_pulls_the_student_towards_its_reference() -> None:
    chat = tiny.chat()
    settings = SETTINGS.model_copy(update={"epochs": 6, "aggregate": "mean"})
    free = healed(chat, settings.model_copy(update={"lam": 0.0}))
    held = healed(chat, settings.model_copy(update={"lam": 20.0}))
    assert held.log.steps[-1].divergence < free.log.steps[-1].divergence / 2
    assert math.isnan(free.log.barrier_fired) and held.log.barrier_fired > 0.5


def test_a_barrier_above_the_operating_divergence_never_fires_and_equals_none() -> None:
    chat = tiny.chat()
    high = healed(chat, SETTINGS.model_copy(update={"tau": 1e6}))
    assert high.log.barrier_fired == 0
    assert same(high.adapter, healed(chat, SETTINGS.model_copy(update={"barrier": "none"})).adapter)


def test_lambda_follows_its_power_over_rounds() -> None:
    chat = tiny.chat()
    pairs = pairs_of(chat)
    settings = SETTINGS.model_copy(update={"lam_power": -0.5, "lam": 0.8})
    done = heal_student(chat, pairs, continuation_states(chat, pairs), settings, round_number=3)
    assert done.log.lam == pytest.approx(0.4)


@pytest.mark.parametrize("seed", range(20))
def test_no_held_out_completion_answers_a_prompt_that_is_trained_on(seed: int) -> None:
    pairs = [([7, prompt], [dose, 1]) for prompt in range(14) for dose in range(1 + prompt % 3)]
    held, train, reason = split(pairs, 0.2, seed)
    assert sorted([*held, *train]) == list(range(len(pairs)))
    assert not {pairs[i][0][1] for i in held} & {pairs[i][0][1] for i in train}
    # 27 completions, of which a fifth is five; prompts have one to three.
    assert 3 <= len(held) <= 5 and reason == ""
    assert split(pairs, 0.2, seed) == (held, train, "")


def test_prompts_with_many_completions_hold_out_the_smallest_and_one_alone_none() -> None:
    pairs = [([1], [i]) for i in range(6)] + [([2], [i]) for i in range(4)]
    held, train, _ = split(pairs, 0.1, 0)
    assert sorted(held) == [6, 7, 8, 9] and len(train) == 6
    assert split(pairs[:6], 0.5, 0)[::2] == ([], "all completions answer one prompt")
    assert split(pairs, 0.05, 0)[2] == "5% of 10 completions is less than one"
    assert split(pairs, 0.0, 0) == ([], split(pairs, 0.0, 0)[1], "")


def test_a_heal_on_one_prompt_has_no_held_out_fit_and_says_why() -> None:
    chat = tiny.chat()
    prompt = prompt_ids(chat, "say it")
    pairs = [(prompt, [*text_ids(chat, text), chat.end_of_turn()]) for text in TEXTS]
    settings = SETTINGS.model_copy(update={"held_out": 0.5})
    log = heal_student(chat, pairs, continuation_states(chat, pairs), settings).log
    assert log.held_out_reason == "all completions answer one prompt"
    assert log.held_out_completions == 0 and all(map(math.isnan, log.held_out))


def test_held_out_completions_are_measured_and_never_trained_on() -> None:
    chat = tiny.chat()
    done = healed(chat, SETTINGS.model_copy(update={"held_out": 0.25}))
    assert (done.log.trained_on, done.log.held_out_completions) == (6, 2)
    assert len(done.log.held_out) == 3
    assert all(math.isfinite(value) for value in done.log.held_out)


def test_a_step_that_is_not_finite_rejects_the_round() -> None:
    chat = tiny.chat()
    pairs = pairs_of(chat)
    reference = [states * math.nan for states in continuation_states(chat, pairs)]
    done = heal_student(chat, pairs, reference, SETTINGS)
    assert done.log.outcome == "rejected"
    assert "not finite" in done.log.reason
    assert len(done.log.steps) == 1


def test_the_prompt_is_masked_and_the_end_of_turn_is_trained() -> None:
    chat = tiny.chat()
    done = healed(chat, SETTINGS.model_copy(update={"epochs": 1, "rows": 8}))
    assert done.log.steps[0].tokens == sum(len(text) + 1 for text in TEXTS)


# ── fold ────────────────────────────────────────────────────────────────────────────────────────


def history_of(chat: ChatModel, gates: Sequence[float] = (1.0, 0.5)) -> list[Gated]:
    return [Gated(healed(chat, seed=i).adapter, gate) for i, gate in enumerate(gates)]


def test_gates_at_zero_and_leaving_are_bit_equal_to_the_untouched_model() -> None:
    chat = tiny.chat()
    before = logits(chat)
    adapters = history_of(chat, (0.0, 0.0))
    with folded(chat, adapters):
        assert torch.equal(logits(chat), before)
    with folded(chat, history_of(chat)):
        assert not torch.equal(logits(chat), before)
    assert torch.equal(logits(chat), before)


def test_folding_is_undone_when_it_fails_half_way() -> None:
    chat = tiny.chat()
    before = logits(chat)
    good = history_of(chat, (1.0,))[0]
    wrong = {name: Pair(torch.ones(2, 7), torch.ones(7, 2)) for name in good.adapter.pairs}
    bad = Gated(Adapter(wrong, 1.0, 2))
    with pytest.raises(UserError, match="does not fit"), folded(chat, [good, bad]):
        pass
    with pytest.raises(RuntimeError, match="inside"), folded(chat, [good]):
        raise RuntimeError("inside")
    assert torch.equal(logits(chat), before)


@pytest.mark.parametrize("family", ["llama", "gemma3-multimodal", "phi"])
def test_folded_equals_attached_at_any_gate(family: str) -> None:
    chat = tiny.chat(family)
    history = history_of(chat, (1.0, 0.3))
    with folded(chat, history):
        inside = logits(chat)
    with attached(chat, history):
        torch.testing.assert_close(logits(chat), inside, atol=1e-4, rtol=1e-3)


def test_in_half_precision_a_history_smaller_than_the_weights_grid_is_not_lost() -> None:
    chat = tiny.chat()
    chat.net.to(torch.bfloat16)
    (only,) = history_of(tiny.chat(), (1.0,))
    name, pair = next(iter(only.adapter.pairs.items()))
    layer = chat.net.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    random = torch.Generator().manual_seed(0)
    down, up = (torch.randn(part.shape, generator=random) for part in (pair.down, pair.up))
    # Far below half the distance between neighbours at the weights' own size.
    step = layer.weight.abs().mean().item() * torch.finfo(torch.bfloat16).eps
    up *= 0.15 * step / (up @ down).std()
    history = [Gated(Adapter({name: Pair(down, up)}, 1.0, down.shape[0]))]
    # What training finds are the directions that its inputs have.
    x = torch.randn(1, 256, len(down), generator=random) @ down
    expected = x @ down.T @ up.T

    def kept() -> float:
        """Share of the change that the layer's output has."""
        change = layer(x.bfloat16()).float() - before
        return ((change * expected).sum() / (expected * expected).sum()).item()

    with torch.no_grad():
        before = layer(x.bfloat16()).float()
        with folded(chat, history):
            assert kept() == pytest.approx(1, abs=0.15)
        with merged(chat, history):
            assert kept() < 0.65
        assert kept() == 0


def test_one_batch_holds_many_gates() -> None:
    chat = tiny.chat()
    (only,) = history_of(chat, (1.0,))
    ids = torch.tensor([prompt_ids(chat, "hello")] * 3)
    with torch.no_grad(), attached(chat, [only], torch.tensor([0.0, 0.5, 1.0])):
        rows = chat.net(input_ids=ids).logits
    for row, gate in zip(rows, (0.0, 0.5, 1.0), strict=True):
        with folded(chat, [Gated(only.adapter, gate)]):
            torch.testing.assert_close(row[None], logits(chat, "hello"), atol=1e-4, rtol=1e-3)


def test_an_adapter_survives_peft_s_own_format(tmp_path: Path) -> None:
    chat = tiny.chat()
    adapter = healed(chat).adapter
    adapter.save(tmp_path / "a")
    again = Adapter.load(tmp_path / "a")
    assert same(adapter, again) and again.scale == adapter.scale and again.rank == adapter.rank
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip


def test_a_damaged_adapter_is_one_clear_message(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    healed(tiny.chat()).adapter.save(folder)
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="Cannot read the adapter"):
        Adapter.load(folder)
    weights.write_bytes(whole)
    tensors = load_file(weights)
    tensors.pop(next(key for key in tensors if "lora_B" in key))
    save_file(tensors, weights)
    with pytest.raises(UserError, match="lacks"):
        Adapter.load(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="Cannot read the adapter"):
        Adapter.load(folder)
    with pytest.raises(UserError, match="is no PEFT adapter folder"):
        Adapter.load(tmp_path / "nowhere")


# ── export ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.long
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_the_exported_adapter_and_merged_model_equal_the_gated_one(
    family: str, tmp_path: Path
) -> None:
    chat = tiny.chat(family)
    before = logits(chat)
    history = history_of(chat, (1.0, 0.4))
    probes = ["one prompt", "another"]
    one = export_peft(chat, history, tmp_path / "peft", probes)
    two = export_merged(chat, history, tmp_path / "merged", probes)
    assert one.difference < 1e-3 * one.scale
    assert two.difference < 1e-4 * two.scale
    assert torch.equal(logits(chat), before)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    joined = Adapter.load(tmp_path / "peft")
    assert joined.rank == 8
    with folded(chat, history):
        inside = logits(chat)
    with folded(chat, [Gated(joined)]):
        torch.testing.assert_close(logits(chat), inside, atol=1e-4, rtol=1e-3)
    merged = load(ModelSettings(name=str(tmp_path / "merged"), device="cpu"))
    torch.testing.assert_close(logits(merged), inside, atol=1e-4, rtol=1e-3)


def test_nothing_folded_is_nothing_to_export() -> None:
    with pytest.raises(UserError, match="nothing to export"):
        concatenated([])
