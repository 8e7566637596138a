"""Adapter kinds, their targets, and what PEFT folders may hold."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from steerheal.config import HealSettings, validated
from steerheal.errors import UserError
from steerheal.heal.adapter import target_names, trained, training, untouched
from steerheal.heal.export import export_merged, export_peft
from steerheal.heal.train import heal_student
from steerheal.models.chat import prompt_ids, text_ids
from steerheal.models.model import ChatModel
from steerheal.models.score import chosen_logprobs, continuation_states
from steerheal.state.adapter import Adapter
from steerheal.state.factors import Pair
from steerheal.state.fold import Gated, assert_alive, attached, concatenated, folded

import tiny

# PEFT and transformers use names of each other that they have deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

KINDS = ["lora", "rslora", "pissa"]
WHOLE = (0.0, 1.0)
CLOSE: dict[str, Any] = {"atol": 2e-4, "rtol": 1e-3}


def settings(kind: str = "lora", **changes: Any) -> HealSettings:
    fields: dict[str, Any] = {
        "barrier": "kl_rev", "adapter": kind, "rank": 3, "alpha": 6.0, "band": WHOLE,
    }  # fmt: skip
    return HealSettings(**fields | changes)


def ids_of(chat: ChatModel) -> list[int]:
    return prompt_ids(chat, "say something")


def logits(chat: ChatModel) -> Tensor:
    with torch.no_grad():
        return chat.net(input_ids=torch.tensor([ids_of(chat)])).logits.clone()


def moved(model: PeftModel, *, seed: int = 0, size: float = 0.05) -> None:
    """Every trainable weight off its start, as training does."""
    random = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += size * torch.randn(weight.shape, generator=random)


def made(chat: ChatModel, chosen: HealSettings, *, seed: int = 0) -> tuple[Adapter, Tensor]:
    """An adapter, and the logits of the model that it was part of while training."""
    with training(chat, chosen, seed=seed) as model:
        moved(model, seed=seed)
        return trained(model, chosen), logits(chat)


def state(chat: ChatModel) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in chat.net.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def mixed(chat: ChatModel) -> list[Gated]:
    """A history of all kinds, with other ranks and layers."""
    chosen = [
        settings("rslora", targets=("attention",)),
        settings("lora", rank=2, alpha=5.0),
        settings("pissa", rank=4, band=(0.2, 0.8)),
    ]
    gates = (1.0, 0.5, 0.8)
    return [
        Gated(made(chat, item, seed=i)[0], gate)
        for i, (item, gate) in enumerate(zip(chosen, gates, strict=True))
    ]


# ── kinds ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", ["llama", "phi", "gemma3-multimodal"])
@pytest.mark.parametrize("kind", KINDS)
def test_folded_is_the_model_that_was_trained(family: str, kind: str) -> None:
    chat = tiny.chat(family)
    before, weights = logits(chat), state(chat)
    adapter, inside = made(chat, settings(kind))
    assert same(state(chat), weights)
    assert (inside - before).abs().max() > 0.05
    with folded(chat, [Gated(adapter)]):
        torch.testing.assert_close(logits(chat), inside, **CLOSE)
    with attached(chat, [Gated(adapter)]):
        torch.testing.assert_close(logits(chat), inside, **CLOSE)
    with folded(chat, [Gated(adapter, 0.0)]):
        assert torch.equal(logits(chat), before)
    assert torch.equal(logits(chat), before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_changes_nothing(kind: str) -> None:
    chat = tiny.chat()
    before, chosen = logits(chat), settings(kind)
    with training(chat, chosen, seed=0) as model:
        torch.testing.assert_close(logits(chat), before, **CLOSE)
        adapter = trained(model, chosen)
    for name in adapter.pairs:
        assert adapter.delta(name).abs().max() < 1e-5
    with pytest.raises(RuntimeError, match="does nothing"):
        assert_alive(chat, adapter, ids_of(chat))


def test_scales_and_ranks_are_those_of_the_kind() -> None:
    chat = tiny.chat()
    found = {kind: made(chat, settings(kind))[0] for kind in KINDS}
    assert {kind: item.rank for kind, item in found.items()} == {"lora": 3, "rslora": 3, "pissa": 6}
    assert found["lora"].scale == found["pissa"].scale == 2.0
    assert found["rslora"].scale == pytest.approx(6 / 3**0.5, rel=1e-15)


def test_rslora_folds_to_the_sum_of_hand_made_factors() -> None:
    chat = tiny.chat()
    adapter, _ = made(chat, settings("rslora"))
    name = next(iter(adapter.pairs))
    pair = adapter.pairs[name]
    layer = chat.net.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    expected = layer.weight + 6 / 3**0.5 * (pair.up @ pair.down)
    with folded(chat, [Gated(adapter)]):
        assert torch.equal(layer.weight, expected)


def test_pissa_starts_from_the_weights_leading_singular_part() -> None:
    chat = tiny.chat()
    with training(chat, settings("pissa"), seed=0) as model:
        adapter = trained(model, settings("pissa"))
    name = next(iter(adapter.pairs))
    layer = chat.net.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    left, values, right = torch.linalg.svd(layer.weight, full_matrices=False)
    pair = adapter.pairs[name]
    start = adapter.scale * (pair.up[:, :3] @ pair.down[:3])
    torch.testing.assert_close(start, left[:, :3] * values[:3] @ right[:3], atol=1e-5, rtol=1e-4)


def test_pissa_holds_in_half_precision() -> None:
    chat = tiny.chat()
    chat.net.to(torch.bfloat16)
    before, weights = logits(chat).float(), state(chat)
    with training(chat, settings("pissa"), seed=0):
        fresh = logits(chat).float()
    adapter, inside = made(chat, settings("pissa"))
    assert same(state(chat), weights)
    with folded(chat, [Gated(adapter)]):
        found = logits(chat).float()
    change = (inside.float() - before).norm()
    assert torch.equal(fresh, before)
    assert (found - inside.float()).norm() < 0.01 * change


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_back_when_training_or_entering_fails(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = tiny.chat()
    before = state(chat)
    with pytest.raises(RuntimeError, match="inside"), training(chat, settings(kind), seed=0) as it:
        moved(it)
        raise RuntimeError("inside")
    assert same(state(chat), before)
    seen = iter(range(100))
    plain = nn.Linear.__init__

    def breaks(self: nn.Linear, *args: Any, **kwargs: Any) -> None:
        if next(seen) == 7:  # some layers are done, others are not
            raise MemoryError("half way")
        plain(self, *args, **kwargs)

    monkeypatch.setattr(nn.Linear, "__init__", breaks)
    with pytest.raises(MemoryError, match="half way"), training(chat, settings(kind), seed=0):
        pass
    assert same(state(chat), before)
    assert not any("lora" in name for name, _ in chat.net.named_modules())


def test_pissa_on_a_folded_history_leaves_both_as_they_were() -> None:
    chat = tiny.chat()
    base = state(chat)
    first, _ = made(chat, settings())
    with folded(chat, [Gated(first)]):
        student = state(chat)
        second, inside = made(chat, settings("pissa"), seed=1)
        assert same(state(chat), student)
    assert same(state(chat), base)
    with folded(chat, [Gated(first), Gated(second)]):
        torch.testing.assert_close(logits(chat), inside, **CLOSE)


def test_pissa_refuses_what_would_eat_the_weights() -> None:
    with pytest.raises(UserError, match="weight_decay"):
        validated(HealSettings, {"adapter": "pissa", "weight_decay": 0.1}, source="test")
    chat = tiny.chat()
    with (
        pytest.raises(UserError, match="at most 16"),
        training(chat, settings("pissa", rank=17), seed=0),
    ):
        pass


# ── targets ─────────────────────────────────────────────────────────────────────────────────────

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(
    ("targets", "leaves"),
    [
        (("all",), ATTENTION | MLP),
        (("attention",), ATTENTION),
        (("mlp",), MLP),
        (("q_proj", "down_proj"), {"q_proj", "down_proj"}),
        (("attention", "up_proj"), ATTENTION | {"up_proj"}),
    ],
)
def test_targets_choose_layers(targets: tuple[str, ...], leaves: set[str]) -> None:
    names = target_names(tiny.chat(), settings(targets=targets))
    assert {name.rpartition(".")[2] for name in names} == leaves
    assert len(names) == 4 * len(leaves)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_has_attention_and_mlp(family: str) -> None:
    chat = tiny.chat(family)
    parts = [set(target_names(chat, settings(targets=(t,)))) for t in ("attention", "mlp")]
    assert all(parts)
    assert parts[0] | parts[1] == set(target_names(chat, settings()))
    assert not parts[0] & parts[1]


def test_a_target_that_no_layer_has_is_named_with_what_there_is() -> None:
    chosen = settings(targets=("q_proj", "dwn_proj"))
    with pytest.raises(UserError, match=r"'dwn_proj'.*'down_proj'.*Known: all, attention"):
        target_names(tiny.chat(), chosen)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_text_decoder_is_touched(kind: str) -> None:
    chat = tiny.chat("gemma3-multimodal")
    decoder = {id(module) for module in chat.decoder.modules()}

    def outside() -> dict[str, nn.Module]:
        return {n: m for n, m in chat.net.named_modules() if id(m) not in decoder}

    before, modules = state(chat), outside()
    kept = {k: v for k, v in before.items() if "language_model" not in k}
    assert any("vision" in name for name in kept)
    with training(chat, settings(kind), seed=0) as model:
        moved(model)
        adapter = trained(model, settings(kind))
        now = state(chat)
        assert same({k: now[k] for k in kept}, kept)
        strangers = [n for n, p in chat.net.named_parameters() if p.requires_grad]
        assert strangers and all("language_model" in name for name in strangers)
        assert all(chat.net.get_submodule(n) is m for n, m in modules.items() if "vision" in n)
    assert all("language_model" in name for name in adapter.pairs)
    with folded(chat, [Gated(adapter)]):
        now = state(chat)
        assert same({k: now[k] for k in kept}, kept)
        assert not same(now, before)
    assert outside() == modules and same(state(chat), before)


# ── training ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns_and_its_adapter_is_alive(kind: str) -> None:
    chat = tiny.chat()
    words = ("warm tea", "a blanket", "sit with me", "stay a bit")
    pairs = [(prompt_ids(chat, f"say {word}"), text_ids(chat, word)) for word in words]
    chosen = settings(kind, barrier="none", epochs=8, rows=4, lr=5e-3, held_out=0.0)
    before = state(chat)
    done = heal_student(chat, pairs, continuation_states(chat, pairs), chosen)
    assert same(state(chat), before)
    assert done.log.steps[-1].ce < 0.97 * done.log.steps[0].ce
    prefix, rest = pairs[0]
    seen = assert_alive(chat, done.adapter, [*prefix, *rest])
    assert seen.layers == seen.of and seen.change > 0.01
    assert min(done.adapter.share(name) for name in done.adapter.pairs) > 1e-4
    with folded(chat, [Gated(done.adapter)]):
        states = torch.cat(continuation_states(chat, pairs))
    targets = torch.tensor([token for _, rest in pairs for token in rest])
    assert -chosen_logprobs(chat, states, targets).mean() < done.log.steps[-1].ce


# ── alive ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_adapter_is_seen_to_act(kind: str) -> None:
    chat = tiny.chat()
    before = logits(chat)
    adapter, inside = made(chat, settings(kind))
    seen = assert_alive(chat, adapter, ids_of(chat))
    assert seen.change == pytest.approx((inside - before).abs().max().item(), rel=1e-2)
    assert seen.scale == before.abs().max().item()
    assert seen.layers == seen.of == len(adapter.pairs)


def test_an_adapter_that_rounding_swallows_is_named() -> None:
    chat = tiny.chat()
    adapter, _ = made(chat, settings())
    small = Adapter(adapter.pairs, 1e-12, adapter.rank)
    with pytest.raises(UserError, match=r"does nothing.*torch.float32.*heal\.lr"):
        assert_alive(chat, small, ids_of(chat))


def test_a_model_that_does_not_come_back_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = tiny.chat()
    adapter, _ = made(chat, settings())
    answers = iter([torch.zeros(2, 3), torch.ones(2, 3), torch.full((2, 3), 0.5)])
    monkeypatch.setattr("steerheal.state.fold._logits", lambda *_: next(answers, torch.zeros(2, 3)))
    with pytest.raises(RuntimeError, match=r"Gate 0 does not restore.*0\.5"):
        assert_alive(chat, adapter, ids_of(chat))


@pytest.mark.parametrize(
    ("inside", "after", "message"),
    [
        (1.0, 0.01, ""),  # within what the forward differs from itself by
        (1.0, 0.2, "Gate 0 does not restore"),
        (0.01, 0.01, "does nothing"),  # an adapter that cannot be told from the noise
    ],
)
def test_a_forward_that_differs_from_itself_is_no_fault_of_the_adapter(
    inside: float, after: float, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = tiny.chat()
    adapter, _ = made(chat, settings())
    answers = iter([0.0, inside, after, -0.01, 0.02, 0.0, 0.01])
    monkeypatch.setattr(
        "steerheal.state.fold._logits", lambda *_: torch.full((2, 3), next(answers))
    )
    if message:
        with pytest.raises((RuntimeError, UserError), match=message):
            assert_alive(chat, adapter, ids_of(chat))
    else:
        assert assert_alive(chat, adapter, ids_of(chat)).change == 1.0


# ── history and export ──────────────────────────────────────────────────────────────────────────


def test_a_history_of_all_kinds_is_the_sum_of_its_differences() -> None:
    chat = tiny.chat()
    history = mixed(chat)
    one = concatenated(history)
    assert one.rank == 3 + 2 + 8
    for name in one.pairs:
        parts = [i.gate * i.adapter.delta(name) for i in history if name in i.adapter.pairs]
        total = torch.stack(parts).sum(0)
        torch.testing.assert_close(one.delta(name), total, atol=1e-5, rtol=1e-4)


def test_a_history_of_all_kinds_exports(tmp_path: Path) -> None:
    chat = tiny.chat()
    history = mixed(chat)
    with folded(chat, history):
        inside = logits(chat)
    first = export_peft(chat, history, tmp_path / "peft", ["one", "two"])
    second = export_merged(chat, history, tmp_path / "merged", ["one", "two"])
    assert max(first.difference, second.difference) < 1e-3 * first.scale
    plain = PeftModel.from_pretrained(tiny.net(), str(tmp_path / "peft")).eval()
    with torch.no_grad():
        found = plain(input_ids=torch.tensor([ids_of(chat)])).logits
    torch.testing.assert_close(found, inside, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_adapter_of_any_kind_comes_back(kind: str, tmp_path: Path) -> None:
    adapter, _ = made(tiny.chat(), settings(kind))
    adapter.save(tmp_path / "a")
    again = Adapter.load(tmp_path / "a")
    assert again.rank == adapter.rank and again.scale == pytest.approx(adapter.scale, rel=1e-15)
    assert all(torch.equal(again.pairs[n].up, adapter.pairs[n].up) for n in adapter.pairs)


# ── folders that PEFT wrote ─────────────────────────────────────────────────────────────────────


def written(folder: Path, **changes: Any) -> tuple[ChatModel, Tensor]:
    """A PEFT folder with moved factors, and the logits of the model it was written from."""
    chat = tiny.chat()
    fields: dict[str, Any] = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj"]}
    with (
        untouched(chat, target_names(chat, settings())),
        torch.random.fork_rng(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = get_peft_model(chat.net, LoraConfig(**fields | changes))
        if str(changes.get("init_lora_weights", "")).startswith("pissa"):
            model.peft_config["default"].init_lora_weights = True
            model.save_pretrained(str(folder / "start"))
            model.peft_config["default"].init_lora_weights = changes["init_lora_weights"]
        moved(model)
        found = logits(chat)
        model.save_pretrained(str(folder))
        if (folder / "start").exists():
            model.save_pretrained(
                str(folder / "plain"),
                path_initial_model_for_weight_conversion=str(folder / "start"),
            )
    return chat, found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 5}},
        {"alpha_pattern": {"up_proj": 1.5}, "rank_pattern": {"q_proj": 7}},
        {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}},
        {"init_lora_weights": "gaussian"},
    ],
)
def test_what_peft_wrote_folds_to_what_peft_computes(changes: Any, tmp_path: Path) -> None:
    chat, inside = written(tmp_path, **changes)
    adapter = Adapter.load(tmp_path)
    with folded(chat, [Gated(adapter)]):
        torch.testing.assert_close(logits(chat), inside, **CLOSE)
    adapter.save(tmp_path / "again")
    plain = PeftModel.from_pretrained(tiny.net(), str(tmp_path / "again")).eval()
    with torch.no_grad():
        found = plain(input_ids=torch.tensor([ids_of(chat)])).logits
    torch.testing.assert_close(found, inside, **CLOSE)


def test_pissa_is_read_when_converted_and_refused_when_not(tmp_path: Path) -> None:
    chat, inside = written(tmp_path, init_lora_weights="pissa")
    with pytest.raises(UserError, match=r"pissa adapter.*path_initial_model"):
        Adapter.load(tmp_path)
    adapter = Adapter.load(tmp_path / "plain")
    assert adapter.rank == 6
    with folded(chat, [Gated(adapter)]):
        torch.testing.assert_close(logits(chat), inside, **CLOSE)


REFUSED: Sequence[tuple[dict[str, Any], str]] = [
    ({"use_dora": True}, "DoRA adapter.*full rank"),
    ({"init_lora_weights": "olora"}, "olora adapter"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"bias": "lora_only"}, "trained biases"),
    ({"lora_bias": True}, "lora_bias"),
    ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ({"layer_replication": [(0, 4), (2, 4)]}, "layer_replication"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_cannot_be_folded_is_refused_with_the_reason(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    written(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        Adapter.load(tmp_path)


def test_variants_and_factors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    written(tmp_path)
    config = tmp_path / "adapter_config.json"
    fields = json.loads(config.read_text())
    config.write_text(
        json.dumps(fields | {"task_type": "CAUSAL_LM", "alora_invocation_tokens": [1, 2]})
    )
    with pytest.raises(UserError, match="alora_invocation_tokens"):
        Adapter.load(tmp_path)
    config.write_text(json.dumps(fields | {"a_setting_of_a_later_peft": {"x": 1}}))
    with pytest.raises(UserError, match="a_setting_of_a_later_peft"):
        Adapter.load(tmp_path)
    config.write_text(json.dumps(fields | {"task_type": "SEQ_CLS"}))
    with pytest.raises(UserError, match=r"task SEQ_CLS"):
        Adapter.load(tmp_path)
    config.write_text(json.dumps(fields | {"target_modules": ["q_proj"]}))
    with pytest.raises(UserError, match=r"leave out layers.*up_proj"):
        Adapter.load(tmp_path)
    config.write_text(json.dumps(fields | {"layers_to_transform": [0, 1, 2]}))
    with pytest.raises(UserError, match=r"leave out layers.*layers\.3"):
        Adapter.load(tmp_path)
    config.write_text(json.dumps(fields | {"lora_dropout": 0.1, "fan_in_fan_out": True}))
    assert Adapter.load(tmp_path).rank == 3
    name = "model.layers.1.self_attn.q_proj"
    bad = Adapter({name: Pair(torch.ones(2, 32), torch.ones(32, 3))}, 1.0, 2)
    bad.save(tmp_path / "bad")
    with pytest.raises(UserError, match="do not fit"):
        Adapter.load(tmp_path / "bad")


def test_an_adapter_of_another_base_says_whose_it_is(tmp_path: Path) -> None:
    adapter, _ = made(tiny.chat(), settings())
    replace(adapter, base="org/some-model-7B").save(tmp_path / "a")
    again = Adapter.load(tmp_path / "a")
    assert "belongs to org/some-model-7B" in again.named_otherwise("tiny-llama")
    assert again.named_otherwise("/models/Some-Model-7B") == ""
    assert adapter.named_otherwise("anything") == ""


def test_an_adapter_names_the_weights_that_it_was_trained_on(tmp_path: Path) -> None:
    chat = replace(tiny.chat(), origin="the de-quantised weights of tiny.Q4_1.gguf")
    adapter, _ = made(chat, settings())
    export_peft(chat, [Gated(adapter)], tmp_path / "out", ["one"])
    words = (tmp_path / "out" / "README.md").read_text()
    assert "the de-quantised weights of tiny.Q4_1.gguf" in words
    fields = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == "tiny-llama"
    export_peft(tiny.chat(), [Gated(adapter)], tmp_path / "plain", ["one"])
    assert not (tmp_path / "plain" / "README.md").exists()
