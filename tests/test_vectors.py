"""Extraction methods, reading positions, kinds of vectors, control vectors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from torch import Tensor, nn

from steerheal.config import VectorSettings
from steerheal.errors import UserError
from steerheal.models.chat import prompt_ids
from steerheal.models.hooks import Kind, hook_count
from steerheal.models.model import ChatModel
from steerheal.state.adapter import Adapter
from steerheal.state.factors import Pair
from steerheal.state.fold import Gated, folded
from steerheal.state.vector import SteeringVector
from steerheal.steer import methods
from steerheal.steer.methods import mean_difference, pca, random, s_space, single_pair
from steerheal.steer.methods.find import find
from steerheal.steer.states import Poles, PoleStates, Source
from steerheal.steer.vector import extract
from steerheal.tables import METHODS

import tiny

CONTEXTS = ["one", "another context", "a third, longer than the others"]
SETTINGS = VectorSettings(band=(0.3, 0.8), answer_tokens=5)
FAMILIES = ["llama", "gemma2", "gemma3-multimodal", "phi"]
SEEDS = {"phi": 3}
"""Where the first seed's random model answers both poles alike."""


def tiny_chat(family: str = "llama") -> ChatModel:
    return tiny.chat(family, seed=SEEDS.get(family, 0))


def settings(**changes: object) -> VectorSettings:
    return VectorSettings.model_validate(SETTINGS.model_dump() | changes)


def extracted(chat: ChatModel, contexts: Sequence[str] = CONTEXTS, **changes: object):
    return extract(chat, tiny.persona(), contexts, settings(**changes))


def states(rows: Tensor) -> PoleStates:
    """Rows as if they had been read in two batches, out of order."""
    order = [*range(1, len(rows)), 0]
    cut = max(1, len(rows) // 2)
    return PoleStates((rows[order[:cut]], rows[order[cut:]]), tuple(order))


def poles(positive: Tensor, negative: Tensor) -> Poles:
    return Poles(states(positive), states(negative))


# ── methods ─────────────────────────────────────────────────────────────────────────────────────


def test_the_table_and_the_files_agree() -> None:
    assert {find(name).kind for name in METHODS} == set(get_args(Kind))
    folder = Path(methods.__file__).parent
    files = {file.stem for file in folder.glob("*.py")} - {"__init__", "find", "method"}
    assert files == set(METHODS)
    with pytest.raises(UserError, match="Perhaps you meant 'pca'"):
        find("pac")
    with pytest.raises(UserError, match="Known: ablation"):
        extract(tiny_chat(), tiny.persona(), ["x"], SETTINGS.model_copy(update={"method": "?"}))


EVERY = [
    (family, method)
    for method in METHODS
    # Gradients reach the pushes of every family in pulled_back already, at a third of the time.
    for family in (("llama", "gemma2") if method == "trait_per_kl" else FAMILIES)
]


@pytest.mark.long
@pytest.mark.parametrize(("family", "method"), EVERY)
def test_every_method_gives_finite_directions_that_steer_and_reports_its_rows(
    family: str, method: str
) -> None:
    chat, seen = tiny_chat(family), []
    chosen = settings(method=method)
    vector = extract(chat, tiny.persona(), CONTEXTS, chosen, seen.append)
    assert sum(seen) == find(method).rows(chosen, len(CONTEXTS))
    assert list(vector.layers) == [1, 2]
    assert all(v.isfinite().all() and v.norm() > 0 for v in vector.layers.values())
    assert all(v.dtype == torch.float32 for v in vector.layers.values())
    ids = torch.tensor([prompt_ids(chat, "hello there")])
    base = chat.net(input_ids=ids).logits
    with vector.applied(chat, 1.0):
        assert not torch.allclose(chat.net(input_ids=ids).logits, base, atol=1e-4)
    assert hook_count(chat.net) == 0
    assert torch.equal(chat.net(input_ids=ids).logits, base)


@pytest.mark.parametrize("position", ["last", "mean"])
@pytest.mark.parametrize("method", ["mean_difference", "single_pair", "random"])
def test_rows_are_counted_at_every_position(method: str, position: str) -> None:
    chosen, seen = settings(method=method, position=position), []
    extract(tiny_chat(), tiny.persona(), CONTEXTS, chosen, seen.append)
    assert sum(seen) == find(method).rows(chosen, len(CONTEXTS))


def test_the_mean_difference_is_hand_worked() -> None:
    up = torch.tensor([[1.0, 0.0], [3.0, 2.0], [2.0, 1.0]])
    down = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 4.0]])
    assert mean_difference.direction(poles(up, down)).tolist() == [2.0, -1.0]
    assert torch.equal(poles(up, down).differences(), up - down)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_pca_recovers_a_planted_direction_with_its_sign(sign: float) -> None:
    source = torch.Generator().manual_seed(3)
    planted = nn.functional.normalize(torch.randn(64, generator=source), dim=0)
    strength = sign * (2.0 + torch.randn(200, 1, generator=source))
    noise = 0.3 * torch.randn(200, 64, generator=source)
    down = torch.randn(200, 64, generator=source)
    found = pca.direction(poles(down + strength * planted + noise, down))
    assert nn.functional.cosine_similarity(found, sign * planted, dim=0) > 0.995
    mean = (strength * planted + noise).mean(0)
    assert found.norm() == pytest.approx(abs(mean @ found / found.norm()).item(), rel=1e-4)
    # Noise in the mean that is not along the principal direction is what pca leaves out.
    assert found.norm() < mean.norm()


def test_pca_of_equal_poles_is_zero() -> None:
    same = torch.randn(4, 8)
    assert torch.equal(pca.direction(poles(same, same)), torch.zeros(8))


def test_poles_that_read_alike_are_a_clear_message() -> None:
    chat = tiny.chat("phi")
    with pytest.raises(UserError, match="read the same at both poles"):
        extracted(chat, method="contrastive_answers")


def test_a_single_pair_is_the_first_contexts_own_difference() -> None:
    up, down = torch.randn(3, 8), torch.randn(3, 8)
    assert torch.equal(single_pair.direction(poles(up, down)), up[0] - down[0])
    chat = tiny_chat()
    one = extracted(chat, CONTEXTS[:1])
    alone = extracted(chat, method="single_pair")
    assert all(torch.equal(alone.layers[i], one.layers[i]) for i in one.layers)
    assert one.cosine(extracted(chat)) < 0.9999


# ── s_space ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_the_layers_that_write_are_found_with_their_gains(family: str) -> None:
    chat = tiny_chat(family)
    block = chat.blocks[1]
    layers, gains = s_space.writing(chat, 1)
    names = {id(part): name for name, part in block.named_modules()}
    attention, mlp = (names[id(layer)] for layer in layers)
    assert attention in {"self_attn.o_proj", "self_attn.dense"}
    assert mlp in {"mlp.down_proj", "mlp.fc2"}
    for layer, gain, norm in zip(layers, gains, s_space.OUTPUT_NORMS, strict=True):
        if family in {"gemma2", "gemma3", "gemma3-multimodal", "olmo2"}:
            offset = 0 if family == "olmo2" else 1
            torch.testing.assert_close(gain, block.get_parameter(f"{norm}.weight") + offset)
        else:
            assert torch.equal(gain, torch.ones(layer.out_features))


def narrow(chat: ChatModel, layer: int, rank: int) -> Tensor:
    """Lets a block write into `rank` directions only; returns them, [D, rank]."""
    basis = torch.linalg.qr(torch.randn(32, rank, generator=torch.Generator().manual_seed(1)))[0]
    for writer in s_space.writing(chat, layer)[0]:
        writer.weight.data = basis @ (basis.T @ writer.weight.data)
    return basis


def test_s_space_stays_in_what_the_block_can_write() -> None:
    chat = tiny_chat()
    basis = narrow(chat, 1, 5)
    vector = extracted(chat, method="s_space", energy=1.0).layers[1]
    mean = extracted(chat).layers[1]
    torch.testing.assert_close(vector, basis @ (basis.T @ mean), atol=1e-5, rtol=1e-4)
    assert (mean - basis @ (basis.T @ mean)).norm() > 0.1 * mean.norm()


def test_s_space_takes_the_norm_on_the_output_along() -> None:
    chat = tiny.chat("olmo2")
    basis = narrow(chat, 1, 5)
    for name in s_space.OUTPUT_NORMS:
        dict(chat.blocks[1].named_children())[name].weight.data = torch.linspace(0.5, 2.0, 32)
    vector = extracted(chat, method="s_space", energy=1.0).layers[1]
    written = torch.linalg.qr(torch.linspace(0.5, 2.0, 32)[:, None] * basis)[0]
    torch.testing.assert_close(vector, written @ (written.T @ vector), atol=1e-5, rtol=1e-4)
    assert (vector - basis @ (basis.T @ vector)).norm() > 0.05 * vector.norm()


def test_s_space_is_the_mean_difference_at_full_energy_and_less_at_less() -> None:
    chat = tiny_chat()
    mean = extracted(chat)
    whole = extracted(chat, method="s_space", energy=1.0)
    part = extracted(chat, method="s_space", energy=0.5)
    for layer in mean.layers:
        torch.testing.assert_close(whole.layers[layer], mean.layers[layer], atol=1e-5, rtol=1e-4)
        assert part.layers[layer].norm() < 0.99 * mean.layers[layer].norm()


def test_the_kept_directions_are_the_fewest_that_hold_the_share() -> None:
    chat = tiny_chat()
    both = torch.cat([layer.weight for layer in s_space.writing(chat, 2)[0]], dim=1).double()
    u, sigma, _ = torch.linalg.svd(both, full_matrices=False)
    share = (sigma**2).cumsum(0) / (sigma**2).sum()
    kept = s_space.writable(chat, 2, 0.7)
    assert share[kept.shape[1] - 2] < 0.7 <= share[kept.shape[1] - 1]
    k = kept.shape[1]
    torch.testing.assert_close(kept @ kept.T, u[:, :k] @ u[:, :k].T, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_student_can_write_includes_its_history(dtype: torch.dtype) -> None:
    chat = tiny_chat()
    chat.net.to(dtype)
    names = {id(module): name for name, module in chat.net.named_modules()}
    random = torch.Generator().manual_seed(0)
    pairs, sums = {}, []
    for layer in s_space.writing(chat, 2)[0]:
        down = torch.randn(2, layer.in_features, generator=random)
        up = torch.randn(layer.out_features, 2, generator=random)
        pairs[names[id(layer)]] = Pair(down, up)
        sums.append((layer.weight.float() + up @ down).double())
    expected = torch.linalg.svd(torch.cat(sums, dim=1))[0][:, :4]
    before = s_space.writable(chat, 2, 0.9)
    with folded(chat, [Gated(Adapter(pairs, 1.0, 2))]):
        found = s_space.writable(chat, 2, 0.9)
    assert found.shape[1] < before.shape[1]
    # The history's four directions are the strongest by far.
    assert (found.T @ expected).norm(dim=0).min() > 0.99
    assert torch.equal(s_space.writable(chat, 2, 0.9), before)


def test_a_block_that_writes_some_other_way_is_a_clear_message() -> None:
    chat = tiny_chat()
    chat.blocks[1].mlp = nn.Identity()
    with pytest.raises(UserError, match=r"LlamaDecoderLayer writes: 1 linear layers"):
        extracted(chat, method="s_space")
    assert hook_count(chat.net) == 0


# ── random ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.long
@pytest.mark.parametrize(("family", "seed"), [("llama", 0), ("llama", 7), ("gemma2", 1)])
def test_random_moves_the_model_as_far_as_the_mean_difference(family: str, seed: int) -> None:
    chat, chosen = tiny_chat(family), settings(method="random", seed=seed)
    systems = (tiny.persona().positive, tiny.persona().negative)
    texts = random.sampled(Source(chat, [systems], CONTEXTS, chosen, [1, 2]))
    assert len(texts) == len(CONTEXTS)

    def tail(vector: SteeringVector) -> float:
        found = []
        for text in texts:
            prompt = prompt_ids(chat, text.prompt)
            ids = torch.tensor([[*prompt, *text.tokens]])
            with torch.no_grad():
                base = chat.net(input_ids=ids).logits[0].log_softmax(-1)
                with vector.applied(chat):
                    ours = chat.net(input_ids=ids).logits[0].log_softmax(-1)
            found.append((ours.exp() * (ours - base)).sum(-1)[len(prompt) - 1 : -1])
        return torch.cat(found).quantile(0.95).item()

    mean, vector = extracted(chat), extracted(chat, method="random", seed=seed)
    assert tail(vector) == pytest.approx(tail(mean), rel=0.05)
    ratios = [vector.layers[i].norm() / mean.layers[i].norm() for i in (1, 2)]
    assert ratios[0].item() == pytest.approx(ratios[1].item(), rel=1e-4)
    assert abs(vector.cosine(mean)) < 0.6


@pytest.mark.long
def test_random_follows_its_seed() -> None:
    chat = tiny_chat()
    a, again, b = (extracted(chat, method="random", seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a.layers[i], again.layers[i]) for i in a.layers)
    assert abs(a.cosine(b)) < 0.7


def test_a_mean_difference_that_random_cannot_match_is_a_clear_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    zero = {1: torch.zeros(32), 2: torch.zeros(32)}
    monkeypatch.setattr(mean_difference, "directions", lambda _: zero)
    with pytest.raises(UserError, match="its own p95 is 0 nats"):
        extracted(tiny_chat(), method="random")


# ── positions ───────────────────────────────────────────────────────────────────────────────────


def plainly_answered(chat: ChatModel, prompt: list[int], tokens: int) -> list[int]:
    """Greedy tokens by whole forwards, stop token left out."""
    row = list(prompt)
    for _ in range(tokens):
        with torch.no_grad():
            token = int(chat.net(input_ids=torch.tensor([row])).logits[0, -1].argmax())
        if token in chat.stop_ids():
            break
        row.append(token)
    return row[len(prompt) :]


def plain_states(chat: ChatModel, row: list[int], layer: int) -> Tensor:
    with torch.no_grad():
        out = chat.net(input_ids=torch.tensor([row]), output_hidden_states=True)
    return out.hidden_states[layer + 1][0]


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reading", ["last", "mean", "contrastive_answers"])
def test_answers_are_read_as_a_plain_forward_would(family: str, reading: str) -> None:
    chat, persona = tiny_chat(family), tiny.persona()
    changes = {"method": reading} if reading in METHODS else {"position": reading}
    vector = extracted(chat, **changes)
    for layer, direction in vector.layers.items():
        expected = torch.zeros(32)
        for context in CONTEXTS:
            for sign, system in ((1, persona.positive), (-1, persona.negative)):
                prompt = prompt_ids(chat, context, system=system)
                answer = plainly_answered(chat, prompt, SETTINGS.answer_tokens)
                assert answer, "the tiny model answers with at least one token"
                if reading == "contrastive_answers":
                    prompt = prompt_ids(chat, context)
                found = plain_states(chat, [*prompt, *answer], layer)
                state = found[-1] if reading == "last" else found[len(prompt) :].mean(0)
                expected += sign * state / len(CONTEXTS)
        assert expected.norm() > 1e-2
        torch.testing.assert_close(direction, expected, atol=2e-4, rtol=2e-3)


def test_a_stop_token_is_no_part_of_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = tiny_chat()
    source = Source(chat, [("", "")], CONTEXTS, settings(answer_tokens=6), [1])
    free = source.answers(0)
    # The third token becomes one that ends a turn.
    stop = free[0][2]
    monkeypatch.setattr(type(chat), "stop_ids", lambda _: (stop,))
    cut = source.answers(0)
    assert cut[0] == free[0][: free[0].index(stop)] or cut[0] == [stop]
    assert all(stop not in answer or answer == [stop] for answer in cut)


# ── kinds ───────────────────────────────────────────────────────────────────────────────────────


def biased(block: nn.Module, push: Tensor) -> None:
    """Sets dose·v as a bias on the MLP's last layer, which is added to the residual stream."""
    names = dict(block.named_modules())
    last = block.get_submodule("mlp.fc2" if "mlp.fc2" in names else "mlp.down_proj")
    assert isinstance(last, nn.Linear)
    bias = torch.zeros(last.out_features) if last.bias is None else last.bias.data
    last.bias = nn.Parameter(bias + push, requires_grad=False)


@pytest.mark.long
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi", "phi3", "olmo"])
@pytest.mark.parametrize("method", [name for name in METHODS if find(name).kind == "add"])
def test_a_foldable_vector_is_a_bias_on_the_blocks_outputs(family: str, method: str) -> None:
    chat, twin = tiny_chat(family), tiny_chat(family)
    vector = extracted(chat, method=method)
    ids = torch.tensor([prompt_ids(chat, "hello there")])
    for layer, v in vector.layers.items():
        biased(twin.blocks[layer], 0.7 * v)
    folded = twin.net(input_ids=ids).logits
    with vector.applied(chat, 0.7):
        steered = chat.net(input_ids=ids).logits
    torch.testing.assert_close(steered, folded, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(steered, chat.net(input_ids=ids).logits, atol=1e-3)


def outputs(chat: ChatModel, ids: Tensor, layer: int) -> Tensor:
    """What the next block is given."""
    given: list[Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        given.append(inputs[0])

    with chat.blocks[layer + 1].register_forward_pre_hook(keep), torch.no_grad():
        chat.net(input_ids=ids)
    return given[0][0]


@pytest.mark.parametrize("family", FAMILIES)
def test_ablation_removes_the_component_and_leaves_the_rest(family: str) -> None:
    chat = tiny_chat(family)
    v = torch.randn(32, generator=torch.Generator().manual_seed(0)) * 3
    unit, vector = v / v.norm(), SteeringVector({1: v}, "ablation")
    ids = torch.tensor([prompt_ids(chat, "hello there")])
    base = outputs(chat, ids, 1)
    along = base @ unit
    rest = base - along[..., None] * unit
    for dose in (0.0, 0.4, 1.0):
        with vector.applied(chat, dose):
            found = outputs(chat, ids, 1)
        torch.testing.assert_close(found @ unit, (1 - dose) * along, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            found - (found @ unit)[..., None] * unit, rest, atol=1e-4, rtol=1e-4
        )
    assert along.abs().max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cosine_gate_pushes_only_where_the_state_points_along(family: str) -> None:
    chat = tiny_chat(family)
    v = torch.randn(32, generator=torch.Generator().manual_seed(0)) * 3
    ids = torch.tensor([prompt_ids(chat, "hello there, how is it going?")])
    base = outputs(chat, ids, 1)
    with SteeringVector({1: v}, "cosine_gate").applied(chat, 2.0):
        found = outputs(chat, ids, 1)
    cosine = (base @ v) / (base.norm(dim=-1) * v.norm())
    away = cosine <= 0
    assert 0 < away.sum() < away.numel(), "the prompt has positions on both sides"
    assert torch.equal(found[away], base[away])
    pushed = base + 2.0 * cosine[..., None] * v
    torch.testing.assert_close(found[~away], pushed[~away], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_row_has_its_own_dose_and_at_0_it_is_the_untouched_model(kind: Kind) -> None:
    chat = tiny_chat()
    vector = SteeringVector({1: torch.randn(32), 2: torch.randn(32)}, kind)
    ids = torch.tensor([prompt_ids(chat, "hello there")] * 3)
    base = chat.net(input_ids=ids).logits
    with vector.applied(chat, torch.tensor([0.0, 1.0, -0.5])) as dosed:
        mixed = chat.net(input_ids=ids).logits
        dosed.set(1.0)
        ones = chat.net(input_ids=ids).logits
        dosed.set(0.0)
        assert torch.equal(chat.net(input_ids=ids).logits, base)
    assert torch.equal(mixed[0], base[0])
    torch.testing.assert_close(mixed[1], ones[1])
    assert not torch.allclose(mixed[1], base[1], atol=1e-3)
    assert not torch.allclose(mixed[2], mixed[1], atol=1e-3)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_zero_vector_of_any_kind_does_nothing_in_half_precision_too(kind: Kind) -> None:
    chat = tiny_chat()
    chat.net.to(torch.bfloat16)
    ids = torch.tensor([prompt_ids(chat, "hello")])
    base = chat.net(input_ids=ids).logits
    with SteeringVector({1: torch.zeros(32)}, kind).applied(chat, 1.0):
        assert torch.equal(chat.net(input_ids=ids).logits, base)
    with SteeringVector({1: torch.ones(32)}, kind).applied(chat, 0.0):
        assert torch.equal(chat.net(input_ids=ids).logits, base)


def test_vectors_keep_their_kind_and_never_mix_it(tmp_path: Path) -> None:
    added = SteeringVector({1: torch.ones(4)})
    ablated = SteeringVector({1: torch.ones(4)}, "ablation")
    for made in (ablated + ablated, 2.0 * ablated, -ablated, ablated - ablated):
        assert made.kind == "ablation"
    for combine in (lambda: added + ablated, lambda: ablated - added):
        with pytest.raises(UserError, match="different kinds"):
            combine()
    assert added.cosine(ablated) == pytest.approx(1)
    ablated.save(tmp_path / "v.safetensors")
    assert SteeringVector.load(tmp_path / "v.safetensors").kind == "ablation"
    SteeringVector({1: torch.ones(4)}, "sideways").save(tmp_path / "w.safetensors")  # pyright: ignore
    with pytest.raises(UserError, match="kind 'sideways'"):
        SteeringVector.load(tmp_path / "w.safetensors")


# ── control vectors ─────────────────────────────────────────────────────────────────────────────


def test_a_vector_goes_to_gguf_and_back_bit_for_bit(tmp_path: Path) -> None:
    vector = SteeringVector({2: torch.randn(33), 11: torch.randn(33)})
    file = tmp_path / "v.gguf"
    vector.export_gguf(file, "llama")
    again = SteeringVector.import_gguf(file)
    assert again.kind == "add" and list(again.layers) == [2, 11]
    assert all(torch.equal(again.layers[i], vector.layers[i]) for i in vector.layers)
    assert [path.name for path in tmp_path.iterdir()] == ["v.gguf"]


def foreign(
    path: Path,
    tensors: dict[str, np.ndarray],
    architecture: str = "controlvector",
    *,
    hint: str = "llama",
    count: int | None = None,
    **says: str | float,
) -> Path:
    """A control vector in the layout, written without the code under test."""
    writer = GGUFWriter(path, architecture)
    writer.add_string("controlvector.model_hint", hint)
    writer.add_uint32("controlvector.layer_count", len(tensors) if count is None else count)
    for name, value in says.items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        add(f"controlvector.{name}", value)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_layout_is_the_one_that_others_write(tmp_path: Path) -> None:
    values = {f"direction.{i}": np.arange(8, dtype=np.float32) + i for i in (3, 1, 10)}
    theirs = foreign(
        tmp_path / "theirs.gguf", dict(sorted(values.items(), key=lambda v: len(v[0])))
    )
    vector = SteeringVector.import_gguf(theirs)
    assert list(vector.layers) == [1, 3, 10]
    assert vector.layers[3].tolist() == [3.0 + i for i in range(8)]
    ordered = {f"direction.{i}": values[f"direction.{i}"] for i in (1, 3, 10)}
    foreign(theirs, ordered)
    vector.export_gguf(tmp_path / "ours.gguf", "llama")
    assert (tmp_path / "ours.gguf").read_bytes() == theirs.read_bytes()


ROW = np.ones(8, dtype=np.float32)


@pytest.mark.parametrize(
    ("tensors", "architecture", "message"),
    [
        ({"direction.1": ROW}, "llama", "architecture is 'llama'"),
        ({}, "controlvector", "holds no directions"),
        ({"direction.0": ROW}, "controlvector", "block from 1 on"),
        ({"direction.x": ROW}, "controlvector", "block from 1 on"),
        ({"token_embd.weight": ROW}, "controlvector", "block from 1 on"),
        ({"direction.1": ROW.astype(np.float16)}, "controlvector", "not a row of float32"),
        ({"direction.1": ROW.reshape(2, 4)}, "controlvector", "not a row of float32"),
        ({"direction.1": ROW, "direction.2": ROW[:4]}, "controlvector", "differ in width"),
        ({"direction.1": ROW * np.float32("nan")}, "controlvector", "not finite"),
    ],
)
def test_a_foreign_gguf_is_a_clear_message(
    tmp_path: Path, tensors: dict[str, np.ndarray], architecture: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        SteeringVector.import_gguf(foreign(tmp_path / "v.gguf", tensors, architecture))


@pytest.mark.parametrize(
    ("family", "says", "message"),
    [
        ("llama", {}, ""),
        ("mistral", {}, ""),  # which llama.cpp calls llama
        ("gemma3", {"hint": "gemma3"}, ""),  # of type gemma3_text
        ("llama", {"hint": ""}, ""),
        ("llama", {"count": 4}, ""),  # the model's blocks
        ("llama", {"operation": "add"}, ""),
        ("llama", {"author": "somebody"}, ""),
        ("llama", {"hint": "gemma2"}, "type 'gemma2'.*of type 'llama'"),
        ("qwen3", {}, "type 'llama'.*of type 'qwen3'"),
        ("llama", {"count": 31}, "31 layers.*2 directions.*4 blocks"),
        ("llama", {"operation": "ablate"}, "operation 'ablate'.*not simply added"),
        ("llama", {"kind": "cosine_gate"}, "kind 'cosine_gate'"),
        ("llama", {"scale": 3.0}, "scale 3.0, which is not known"),
    ],
)
def test_a_control_vector_for_something_else_is_refused(
    family: str, says: dict[str, Any], message: str, tmp_path: Path
) -> None:
    chat, row = tiny.chat(family), np.ones(32, dtype=np.float32)
    file = foreign(tmp_path / "v.gguf", {"direction.1": row, "direction.2": row}, **says)
    if not message:
        with SteeringVector.import_gguf(file).applied(chat):
            return
    with pytest.raises(UserError, match=message), SteeringVector.import_gguf(file).applied(chat):
        pass


def test_a_damaged_gguf_is_a_clear_message_wherever_it_is_cut(tmp_path: Path) -> None:
    file, broken = tmp_path / "v.gguf", tmp_path / "broken.gguf"
    SteeringVector({1: torch.ones(8), 2: torch.ones(8)}).export_gguf(file, "llama")
    whole = file.read_bytes()
    for size in range(0, len(whole) - 32, 3):
        broken.write_bytes(whole[:size])
        with pytest.raises(UserError):
            SteeringVector.import_gguf(broken)
    with pytest.raises(UserError, match="Cannot read"):
        SteeringVector.import_gguf(tmp_path / "nowhere.gguf")


def test_what_the_layout_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="block 0"):
        SteeringVector({0: torch.ones(4)}).export_gguf(tmp_path / "v.gguf", "llama")
    with pytest.raises(UserError, match="cannot be exported"):
        SteeringVector({1: torch.ones(4)}, "ablation").export_gguf(tmp_path / "v.gguf", "llama")
    with pytest.raises(UserError, match="Cannot write"):
        SteeringVector({1: torch.ones(4)}).export_gguf(tmp_path / "no" / "v.gguf", "llama")
    assert not list(tmp_path.iterdir())
