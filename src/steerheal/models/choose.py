"""Choosing tokens: every row has its own stream of uniforms, so that its batch does not matter.

A token is drawn by inverting the cumulative distribution at u ~ U(0, 1), in the order of the
vocabulary. The nucleus is sampled by rejection: a draw stands if the mass of the tokens that are
likelier than it is below top_p, else the row draws again. That is exact, needs no sorting, and one
draw in 1/top_p is enough. Sums run in float64, on the CPU where the device has none.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from steerheal.config import SamplingSettings
from steerheal.models.wide import home

BLOCK = 256
"""Tokens whose mass is summed before the block that holds u is looked into."""

Draws = Callable[[Int[Tensor, " K"]], Float[Tensor, " K"]]
"""The next uniform of each of the named rows."""


class Uniforms:
    """One stream of uniforms per row, read as far as that row needs."""

    def __init__(self, seeds: Sequence[int], size: int, device: torch.device) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._home = home(device)
        self._used = torch.zeros(len(seeds), dtype=torch.long, device=self._home)
        self._values = self._more(size).to(self._home)

    def next(self, rows: Int[Tensor, " K"]) -> Float[Tensor, " K"]:
        """The next uniform of each of the rows, in float64."""
        rows = rows.to(self._home)
        if int(self._used.max()) >= self._values.shape[1]:
            more = self._more(self._values.shape[1]).to(self._home)
            self._values = torch.cat([self._values, more], dim=1)
        found = self._values[rows, self._used[rows]]
        self._used[rows] += 1
        return found

    def among(self, live: Int[Tensor, " K"]) -> Draws:
        """The streams of the rows that are still live, by their place among them."""
        return lambda which: self.next(live[which])

    def _more(self, size: int) -> Float[Tensor, "B S"]:
        return torch.stack(
            [torch.rand(size, generator=g, dtype=torch.float64) for g in self._generators]
        )


def choose(
    logits: Float[Tensor, "B V"], draws: Draws, settings: SamplingSettings
) -> Int[Tensor, " B"]:
    """A token for each row, from the tempered, truncated distribution."""
    if settings.temperature == 0:
        return logits.argmax(-1)
    tempered = logits if settings.temperature == 1 else logits / settings.temperature
    probs = tempered.softmax(-1)
    if settings.top_k:
        best, index = probs.topk(min(settings.top_k, probs.shape[-1]))
        best = best / best.sum(-1, keepdim=True)
        probs = torch.zeros_like(probs).scatter_(1, index, best)
    rows = torch.arange(len(probs), device=probs.device)
    chosen = inverted(probs, draws(rows))
    if settings.top_p == 1:
        return chosen
    # What lies outside the nucleus has at most 1 − top_p between them: likelier tokens are inside.
    doubtful = rows[probs.gather(1, chosen[:, None])[:, 0] <= 1 - settings.top_p]
    while len(doubtful):
        some = probs[doubtful]
        outside = ~in_nucleus(some, chosen[doubtful], settings.top_p)
        doubtful = doubtful[outside]
        chosen[doubtful] = inverted(some[outside], draws(doubtful))
    return chosen


def in_nucleus(
    probs: Float[Tensor, "B V"], chosen: Int[Tensor, " B"], top_p: float
) -> Bool[Tensor, " B"]:
    """Whether the mass of the tokens likelier than the chosen one is below top_p."""
    likelier = probs > probs.gather(1, chosen[:, None])
    return (probs * likelier).sum(-1) < top_p


def inverted(weights: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The token at which the running sum of the weights passes u times their total."""
    device, weights = weights.device, weights.to(uniforms.device)
    rows, short = torch.arange(len(weights), device=weights.device), -weights.shape[1] % BLOCK
    blocks = (pad(weights, (0, short)) if short else weights).unflatten(1, (-1, BLOCK))
    sums = blocks.sum(-1, dtype=torch.float64)
    ends = sums.cumsum(-1)
    target = uniforms.double() * ends[:, -1]
    block = _passed(ends, target)
    inside = blocks[rows, block].double().cumsum(-1)
    before = ends[rows, block] - sums[rows, block]
    return (block * BLOCK + _passed(inside, target - before)).to(device)


def _passed(sums: Float[Tensor, "B K"], target: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """First place whose running sum is above the target."""
    place = torch.searchsorted(sums, target[:, None], right=True)
    # u < 1, so that only rounding can reach past the last place with weight.
    last = torch.searchsorted(sums, sums[:, -1:].contiguous())
    return torch.minimum(place, last)[:, 0]
