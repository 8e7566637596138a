"""The spectral penalty: Σ over adapted layers of ‖ΔW‖₂, from the factors, ΔW never formed.

ΔW = s·B·A with B [O, R] and A [R, I]. Its largest singular value is found by power iteration in
the factors' own space: with y in ℝᴿ and v = Aᵀy, (ΔW)ᵀΔW v = s²·Aᵀ(BᵀB)(AAᵀ)y, so that a sweep
costs R² per layer. With the unit vectors u and v that it ends in held fixed, s·u·(B(A v)) is the
norm and has the norm's own gradient.

Source: the penalty of Yoshida and Miyato 2017, arXiv:1705.10941, here on a weight's change.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

SWEEPS = 32
"""Power iterations per step; the vectors start where the step before left them."""
TINY = 1e-30
"""Keeps a direction of length 0 from dividing by it: a fresh adapter's norm and slope are 0."""


class Spectral:
    """Operator norms of a training model's ΔW, with the vectors of the last look kept."""

    def __init__(self, model: nn.Module, *, seed: int = 0) -> None:
        """Looks at every layer of `model` that has LoRA factors, as they are at the start.

        A start whose product is not 0 (its complement is in the layer's frozen weight) counts as
        no change: ΔW = s·(B·A − B₀·A₀).
        """
        self._layers = [_Layer(item) for item in model.modules() if hasattr(item, "lora_A")]
        assert self._layers, "no layer has factors"
        ranks = [layer.rank for layer in self._layers]
        random = torch.Generator().manual_seed(seed)
        start = torch.randn(len(ranks), max(ranks), generator=random)
        self.vectors = start.to(self._layers[0].device)
        """One start per layer, in the space of its factors."""

    def norms(self) -> Float[Tensor, " L"]:
        """‖ΔW‖₂ per layer, differentiable in the factors."""
        factors = [layer.factors() for layer in self._layers]
        self._iterate(factors)
        out = []
        for (down, up, scale), y in zip(factors, self.vectors, strict=True):
            with torch.no_grad():
                v = down.T @ y[: len(down)]
                v = v / v.norm().clamp_min(TINY)
                u = up @ (down @ v)
                u = u / u.norm().clamp_min(TINY)
            out.append(scale * (u @ (up @ (down @ v))))
        return torch.stack(out)

    @torch.no_grad()
    def _iterate(self, factors: list[tuple[Tensor, Tensor, float]]) -> None:
        grams = [(up.T @ up) @ (down @ down.T) for down, up, _ in factors]
        width = self.vectors.shape[1]
        stacked = torch.stack([nn.functional.pad(gram, (0, width - len(gram)) * 2)
                               for gram in grams])  # fmt: skip
        y = self.vectors
        for _ in range(SWEEPS):
            moved = torch.bmm(stacked, y[..., None])[..., 0]
            size = moved.norm(dim=1, keepdim=True)
            # Where ΔW is 0 there is no direction to find, and the start is kept.
            y = torch.where(size > TINY, moved / size.clamp_min(TINY), y)
        self.vectors = y


class _Layer:
    """One adapted layer's factors."""

    def __init__(self, layer: Any) -> None:
        (self._name,) = layer.lora_A
        self._layer = layer
        down, up = self._weights()
        self._first = (down.detach().clone(), -up.detach().clone()) if up.any() else None
        self.rank = len(down) * (1 if self._first is None else 2)
        self.device = down.device

    def _weights(self) -> tuple[Tensor, Tensor]:
        return self._layer.lora_A[self._name].weight, self._layer.lora_B[self._name].weight

    def factors(self) -> tuple[Tensor, Tensor, float]:
        """A, B and s."""
        (down, up), scale = self._weights(), float(self._layer.scaling[self._name])
        if self._first is not None:
            down = torch.cat([down, self._first[0]])
            up = torch.cat([up, self._first[1]], dim=1)
        return down, up, scale
