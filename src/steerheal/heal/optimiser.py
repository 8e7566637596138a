"""AdamW on an adapter's parameters, with its schedule, as something that can be saved and put back.

Rate at update i of n (from 0), with w = ⌈warmup·n⌉ and t = i + 1: lr·t/w while t < w, then
lr·½(1 + cos(π(t − w)/(n + 1 − w))); neither end is 0, so that every step moves.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from steerheal.config import HealSettings
from steerheal.ranks import follow, merged, rank, summed, world

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
WEIGHT, ADAM = "weight:", "adam:"


class Optimiser:
    """One heal's updates: clipped gradients, AdamW, and where the schedule stands."""

    def __init__(
        self, named: Mapping[str, nn.Parameter], settings: HealSettings, rows: int
    ) -> None:
        """Over the named parameters, for `rows` training completions."""
        self._named, self._settings = dict(named), settings
        self.total = settings.epochs * math.ceil(rows / settings.rows)
        self.done = 0
        """Updates so far: the schedule's position."""
        self._adam = torch.optim.AdamW(
            list(self._named.values()),
            lr=settings.lr,
            betas=(0.9, settings.beta2),
            weight_decay=settings.weight_decay,
        )

    @property
    def lr(self) -> float:
        """Learning rate of the next update."""
        place, warm = self.done + 1, math.ceil(self._settings.warmup * self.total)
        if place < warm:
            return self._settings.lr * place / warm
        share = (place - warm) / (self.total + 1 - warm)
        return self._settings.lr * 0.5 * (1 + math.cos(math.pi * share))

    def joined(self, sums: Tensor) -> list[float]:
        """The processes' gradients become their sum on all of them, and so do these numbers."""
        if world() > 1:
            weights = list(self._named.values())
            met = torch.tensor([float(weight.grad is not None) for weight in weights])
            everywhere = torch.stack(list(merged({rank(): met}).values()))
            for weight, anywhere in zip(weights, everywhere.sum(0).tolist(), strict=True):
                # A process that had no row of this step has no gradient of its own.
                weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
                summed(weight.grad)
                weight.grad = weight.grad if anywhere else None
            sums = torch.stack(list(merged({rank(): sums}).values())).sum(0)
        return sums.tolist()

    def apply(self) -> float:
        """One update; the gradient's norm before clipping."""
        for weight in self._named.values():
            if weight.grad is not None:
                follow(weight.grad)
        norm = nn.utils.clip_grad_norm_(self._named.values(), self._settings.clip).item()
        if math.isfinite(norm):
            for group in self._adam.param_groups:
                group["lr"] = self.lr
            self._adam.step()
            self.done += 1
        self.forget()
        return norm

    def forget(self) -> None:
        """Drops the gradients of a step that was broken off."""
        self._adam.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """The parameters and Adam's moments, by name."""
        tensors = {WEIGHT + name: weight.detach() for name, weight in self._named.items()}
        for name, weight in self._named.items():
            # A weight without a gradient so far, such as an expert that no token took, has none.
            for moment, value in self._adam.state[weight].items():
                tensors[f"{ADAM}{moment}:{name}"] = value
        return tensors

    def fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether the tensors are a state of these parameters."""

        def shaped(key: str, shape: torch.Size) -> bool:
            found = tensors.get(key)
            return found is not None and found.shape == shape

        for name, weight in self._named.items():
            count, *moments = self._moments(tensors, name) or [""]
            whole = all(shaped(key + name, weight.shape) for key in (WEIGHT, *moments))
            if not (whole and (not count or shaped(count + name, torch.Size()))):
                return False
        return True

    def _moments(self, tensors: Mapping[str, Tensor], name: str) -> list[str]:
        """Where a weight's moments are, the number of steps first; nowhere if it has none."""
        keys = [f"{ADAM}{moment}:" for moment in MOMENTS]
        return keys if any(key + name in tensors for key in keys) else []

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], done: int) -> None:
        """Goes back to a state that `fits`, `done` updates into the heal."""
        for name, weight in self._named.items():
            weight.copy_(tensors[WEIGHT + name])
            found = [tensors[key + name] for key in self._moments(tensors, name)]
            if found:
                step, *moments = found
                self._adam.state[weight] = {"step": step.clone()} | {
                    key: moment.to(weight.device).clone()
                    for key, moment in zip(MOMENTS[1:], moments, strict=True)
                }
        self.done = done
