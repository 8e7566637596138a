"""Batched sampling: one batch mixes prompts, seeds and doses; each row is as if it were alone.

In: draws and sampling settings. Out: completions. The sampler sets the dose of every row through a
`Dosed` and knows nothing else of steering.

A row's randomness is its own stream of uniforms u ~ U(0, 1) from its seed; a token is drawn by
inverting the cumulative distribution at u, so that the batch around a row does not change it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from steerheal.config import SamplingSettings
from steerheal.models.batch import left_padded, shrinking
from steerheal.models.chat import decode, prompt_ids
from steerheal.models.hooks import Dosed
from steerheal.models.load import ChatModel
from steerheal.records import Completion

NUCLEUS_GUESS = 1024
"""Likeliest tokens searched for the nucleus first; rows that need more sort the vocabulary."""
COMPACT_SHARE = 0.25
"""Finished rows leave the batch once they are this share of it."""
ROOM = 64
"""Positions by which the cache's buffers grow."""


@dataclass(frozen=True)
class Draw:
    """One row to sample."""

    prompt: str
    dose: float = 0.0
    seed: int = 0


@torch.no_grad()
def generate(
    chat: ChatModel,
    draws: Sequence[Draw],
    settings: SamplingSettings,
    *,
    system: str = "",
    dosed: Dosed | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Completion]:
    """A completion for every draw, in the order given.

    Args:
        chat: The model, possibly inside `adding` or `folded`.
        draws: Prompts with their doses and seeds.
        settings: Lengths, temperature, nucleus, rows per batch.
        system: System prompt of every row.
        dosed: The handle from `adding`; required when any dose is not 0.
        progress: Called with the number of rows finished since the last call.
    """
    assert dosed is not None or all(draw.dose == 0 for draw in draws), "doses without a vector"
    prompts = [prompt_ids(chat, draw.prompt, system=system) for draw in draws]
    completions: dict[int, Completion] = {}
    stops = torch.tensor(chat.stop_ids(), device=chat.device)

    def work(batch: list[int]) -> None:
        doses = torch.tensor([draws[i].dose for i in batch], device=chat.device)
        uniforms = _uniforms([draws[i].seed for i in batch], settings.tokens)
        rows = _decode_batch(
            chat, [prompts[i] for i in batch], doses, uniforms, settings, stops=stops, dosed=dosed
        )
        for i, row in zip(batch, rows, strict=True):
            completions[i] = _completion(chat, draws[i], row)
        progress(len(batch))

    order = sorted(range(len(draws)), key=lambda i: (len(prompts[i]), i))
    for start in range(0, len(order), settings.rows):
        shrinking(order[start : start + settings.rows], work)
    return [completions[i] for i in range(len(draws))]


def _completion(chat: ChatModel, draw: Draw, tokens: list[int]) -> Completion:
    return Completion(
        prompt=draw.prompt,
        text=decode(chat, tokens).strip(),
        tokens=tuple(tokens),
        dose=draw.dose,
        seed=draw.seed,
        ended=tokens[-1] in chat.stop_ids(),
    )


def _uniforms(seeds: Sequence[int], tokens: int) -> Float[Tensor, "B N"]:
    return torch.stack([
        torch.rand(tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in seeds
    ])


def _decode_batch(
    chat: ChatModel,
    prompts: Sequence[Sequence[int]],
    doses: Float[Tensor, " B"],
    uniforms: Float[Tensor, "B N"],
    settings: SamplingSettings,
    *,
    stops: Int[Tensor, " S"],
    dosed: Dosed | None,
) -> list[list[int]]:
    """Token ids of every row, its stop token included."""
    ids, mask, positions = left_padded(prompts, int(stops[0]), chat.device)
    cache = roomy_cache(chat)
    tokens: list[list[int]] = [[] for _ in prompts]
    live = torch.arange(len(prompts), device=chat.device)
    uniforms = uniforms.to(chat.device)
    finished = torch.zeros(len(prompts), dtype=torch.bool, device=chat.device)
    for step in range(settings.tokens):
        if dosed is not None:
            dosed.set(doses[live])
        hidden = chat.hidden(
            ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        chosen = choose(chat.logits(hidden[:, -1]), uniforms[live, step], settings)
        done = finished[live]
        for row, token, over in zip(
            live.tolist(), chosen.tolist(), done.tolist(), strict=True
        ):
            if not over:
                tokens[row].append(token)
        finished[live] = done | torch.isin(chosen, stops)
        ids, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
        done = finished[live]
        if done.all():
            break
        if done.float().mean() >= COMPACT_SHARE:
            keep = (~done).nonzero()[:, 0]
            cache.batch_select_indices(keep)
            live, ids, mask, positions = live[keep], ids[keep], mask[keep], positions[keep]
    return tokens


def choose(
    logits: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"], settings: SamplingSettings
) -> Int[Tensor, " B"]:
    """The token of each row at its uniform: F⁻¹(u) of the tempered, truncated distribution."""
    if settings.temperature == 0:
        return logits.argmax(-1)
    probs = (logits / settings.temperature).softmax(-1)
    vocabulary = probs.shape[-1]
    if not settings.top_k and settings.top_p == 1:
        return _invert(probs, uniforms)
    width = min(vocabulary, settings.top_k or NUCLEUS_GUESS)
    best, index = probs.topk(width)
    if not settings.top_k and width < vocabulary:
        short = best.sum(-1) < settings.top_p
        if short.any():
            best, index = probs.sort(descending=True)
    if settings.top_k:
        best = best / best.sum(-1, keepdim=True)
    # A token stays while the mass before it is below top_p: the one that crosses is in.
    before = best.cumsum(-1) - best
    best = best.masked_fill(before >= settings.top_p, 0)
    return index.gather(1, _invert(best, uniforms)[:, None])[:, 0]


def _invert(weights: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    cumulative = weights.double().cumsum(-1)
    target = uniforms[:, None].double() * cumulative[:, -1:]
    place = torch.searchsorted(cumulative, target, right=True)[:, 0]
    # u < 1, so that only rounding can reach past the last token with weight.
    last = (weights > 0).long().cumsum(-1).argmax(-1)
    return torch.minimum(place, last)


class RoomyLayer(DynamicLayer):
    """A cache layer that writes into a buffer with room, instead of copying itself every token."""

    def __init__(self) -> None:
        super().__init__()
        self._length = 0
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Appends along the position axis; returns views of everything cached."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self._length = self._length, self._length + key_states.shape[-2]
        keys, values = self._grown(key_states, value_states)
        keys[..., start : self._length, :] = key_states
        values[..., start : self._length, :] = value_states
        self.keys, self.values = keys[..., : self._length, :], values[..., : self._length, :]
        return self.keys, self.values

    def _grown(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self._buffers is None or self._buffers[0].shape[-2] < self._length:
            room = self._length + ROOM
            grown = (
                keys.new_empty(*keys.shape[:-2], room, keys.shape[-1]),
                values.new_empty(*values.shape[:-2], room, values.shape[-1]),
            )
            if self._buffers is not None:
                for new, old in zip(grown, (self.keys, self.values), strict=True):
                    new[..., : old.shape[-2], :] = old
            self._buffers = grown
        return self._buffers

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows at `indices`."""
        if self._buffers is not None:
            keys, values = (buffer[indices] for buffer in self._buffers)
            self._buffers = (keys, values)
            self.keys, self.values = keys[..., : self._length, :], values[..., : self._length, :]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row `repeats` times in place."""
        if self._buffers is not None:
            keys, values = (buffer.repeat_interleave(repeats, 0) for buffer in self._buffers)
            self._buffers = (keys, values)
            self.keys, self.values = keys[..., : self._length, :], values[..., : self._length, :]


def roomy_cache(chat: ChatModel) -> DynamicCache:
    """A cache for the model; sliding-window layers keep transformers' own."""
    cache = DynamicCache(config=chat.net.config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
