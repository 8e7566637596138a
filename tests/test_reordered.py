"""Weights in the processor's layout: the same products, of the weights as they are now."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from steerheal.models import reordered
from steerheal.models.reordered import LEAST, Reordered, reorder, reorder_layers, reordered_in
from steerheal.state.adapter import Adapter
from steerheal.state.factors import Pair
from steerheal.state.fold import Gated, folded

import tiny

pytestmark = pytest.mark.skipif(
    not reordered._there(), reason="this processor or this PyTorch has no such products"
)


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = nn.Sequential(nn.Linear(128, 192), nn.Tanh(), nn.Linear(192, 128, bias=False))
    made.requires_grad_(False)
    reorder_layers(made)
    return made


def rows(*size: int) -> torch.Tensor:
    return torch.randn(*size, 128, generator=torch.Generator().manual_seed(1))


def plainly(made: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """What the layers' own weights give."""
    first, _, last = made
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    inner = torch.tanh(x @ first.weight.T + first.bias)
    return inner @ last.weight.T


@pytest.mark.parametrize("size", [(1,), (3,), (2, 5), (0,), (2, 0)])
def test_products_are_those_of_the_weights(size: tuple[int, ...]) -> None:
    made = net()
    assert all(type(layer) is Reordered for layer in (made[0], made[2]))
    torch.testing.assert_close(made(rows(*size)), plainly(made, rows(*size)))


def test_a_weight_that_has_changed_is_the_one_that_is_read() -> None:
    made, x = net(), rows(3)
    before = made(x)
    layer = made[2]
    assert isinstance(layer, nn.Linear)
    kept = layer.weight.detach().clone()
    layer.weight.add_(1.0)
    torch.testing.assert_close(made(x), plainly(made, x))
    layer.weight.copy_(kept)
    assert torch.equal(made(x), before)
    layer.weight.data = kept + 2
    torch.testing.assert_close(made(x), plainly(made, x))
    other = deepcopy(made)
    layer.weight.data = kept
    torch.testing.assert_close(other(x), plainly(other, x))
    assert torch.equal(made(x), before)


def test_gradients_are_the_ordinary_ones() -> None:
    made = net()
    x, y = (rows(3).requires_grad_() for _ in range(2))
    made(x).square().sum().backward()
    plainly(made, y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_only_what_gains_by_it_is_kept_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reordered_in(net()) == 2 * 128 * 192
    small = nn.Linear(64, LEAST // 64 - 1)
    reorder_layers(small)
    assert type(small) is nn.Linear
    half = nn.Linear(128, 192).bfloat16()
    reorder_layers(half)
    assert type(half) is nn.Linear
    monkeypatch.setattr(reordered, "ROOM", 1e9)
    assert reordered_in(net()) == 0


def test_in_a_run_s_model_a_fold_is_read_and_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reordered, "LEAST", 1)
    plain, own = tiny.chat(), tiny.chat()
    reorder(own)
    assert reordered_in(own.net) > 0
    layer, draw = "model.layers.1.mlp.up_proj", torch.Generator().manual_seed(2)
    out, inner = plain.net.get_parameter(f"{layer}.weight").shape
    pair = Pair(torch.randn(2, inner, generator=draw), torch.randn(out, 2, generator=draw))
    adapter = Adapter({layer: pair}, scale=0.1, rank=2)
    ids = torch.tensor([list(b"a warm day")])
    with torch.no_grad():
        before = own.net(ids).logits
        for gate in (1.0, 0.5):
            with folded(plain, [Gated(adapter, gate)]), folded(own, [Gated(adapter, gate)]):
                moved = own.net(ids).logits
                torch.testing.assert_close(moved, plain.net(ids).logits, rtol=1e-4, atol=1e-4)
            assert (moved - before).abs().max() > 1e-2
        assert torch.equal(own.net(ids).logits, before)
