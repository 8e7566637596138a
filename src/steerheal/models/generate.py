"""Batched sampling: one batch mixes prompts, seeds and doses; each row is as if it were alone.

In: draws and sampling settings. Out: completions. The sampler sets the dose of every row through a
`Dosed` and knows nothing else of steering.

A row's randomness is its own stream of uniforms u ~ U(0, 1) from its seed; a token is drawn by
inverting the cumulative distribution at u, so that the batch around a row does not change it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from steerheal.config import SamplingSettings
from steerheal.models.batch import free_bytes, left_padded, shared_prefix, shrinking, token_budget
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
MEMORY_SHARE = 0.5
"""Share of the free memory that a batch may plan to fill."""
LOGIT_COPIES = 6
"""Vocabulary-wide float32 rows that choosing a token holds at once, at most."""


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
    rows = fitting(chat, settings.rows, max(map(len, prompts), default=0) + settings.tokens)
    for start in range(0, len(order), rows):
        shrinking(order[start : start + rows], work)
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
    return torch.stack(
        [
            torch.rand(tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            for seed in seeds
        ]
    )


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
    hidden, cache, mask, positions = prefilled(chat, prompts, doses, dosed)
    tokens: list[list[int]] = [[] for _ in prompts]
    live = torch.arange(len(prompts), device=chat.device)
    uniforms = uniforms.to(chat.device)
    finished = torch.zeros(len(prompts), dtype=torch.bool, device=chat.device)
    for step in range(settings.tokens):
        chosen = choose(chat.logits(hidden[:, -1]), uniforms[live, step], settings)
        done = finished[live]
        for row, token, over in zip(live.tolist(), chosen.tolist(), done.tolist(), strict=True):
            if not over:
                tokens[row].append(token)
        finished[live] = done | torch.isin(chosen, stops)
        done = finished[live]
        if done.all() or step + 1 == settings.tokens:
            break
        ids, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
        if done.float().mean() >= COMPACT_SHARE:
            keep = (~done).nonzero()[:, 0]
            cache.batch_select_indices(keep)
            live, ids, mask, positions = live[keep], ids[keep], mask[keep], positions[keep]
        if dosed is not None:
            dosed.set(doses[live])
        hidden = chat.hidden(
            ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
    return tokens


class Prefilled(NamedTuple):
    """Prompts that were read: where decoding goes on."""

    hidden: Float[Tensor, "B T D"]
    """Final states of the left-padded prompts, after what they share."""
    cache: DynamicCache
    mask: Int[Tensor, "B S"]
    """Which cached positions count, the shared ones included."""
    positions: Int[Tensor, "B T"]


def prefilled(
    chat: ChatModel,
    prompts: Sequence[Sequence[int]],
    doses: Float[Tensor, " B"] | None = None,
    dosed: Dosed | None = None,
) -> Prefilled:
    """Reads the prompts; what all of them begin with (a system prompt) once per distinct dose."""
    rows = len(prompts)
    # Padding between the shared part and the rest would count towards a sliding window.
    start = 0 if slides(chat) else shared_prefix(prompts)
    cache = roomy_cache(chat)
    if start:
        each = torch.zeros(rows, dtype=torch.long, device=chat.device)
        count = 1
        if dosed is not None and doses is not None:
            distinct, each = doses.unique(return_inverse=True)
            dosed.set(distinct)
            count = len(distinct)
        prefix = torch.tensor([list(prompts[0][:start])] * count, device=chat.device)
        read_on(chat, prefix, torch.ones_like(prefix), cache)
        cache.batch_select_indices(each)
    if dosed is not None and doses is not None:
        dosed.set(doses)
    ids, mask, positions = left_padded([prompt[start:] for prompt in prompts], 0, chat.device)
    mask = torch.cat([mask.new_ones(rows, start), mask], dim=1)
    positions = positions + start
    hidden = read_on(chat, ids, mask, cache, positions)
    return Prefilled(hidden, cache, mask, positions)


def read_on(
    chat: ChatModel,
    ids: Int[Tensor, "B T"],
    mask: Int[Tensor, "B S"],
    cache: DynamicCache,
    positions: Int[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T D"]:
    """Final states of more tokens, S − T of which were read before.

    A long read goes in pieces of columns: what one forward allocates beyond the allocator's own
    pool costs more to fault in than to compute.
    """
    width, total = ids.shape[1], mask.shape[1]
    step = max(1, token_budget(chat.device) // len(ids))
    pieces = []
    for start in range(0, width, step):
        end = min(start + step, width)
        pieces.append(
            chat.hidden(
                ids[:, start:end],
                attention_mask=mask[:, : total - width + end],
                position_ids=None if positions is None else positions[:, start:end],
                past_key_values=cache,
                use_cache=True,
            )
        )
    return torch.cat(pieces, dim=1)


def choose(
    logits: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"], settings: SamplingSettings
) -> Int[Tensor, " B"]:
    """The token of each row at its uniform: F⁻¹(u) of the tempered, truncated distribution."""
    if settings.temperature == 0:
        return logits.argmax(-1)
    probs = (logits / settings.temperature).softmax(-1)
    if not settings.top_k and settings.top_p == 1:
        return _invert(probs, uniforms)
    best, index = probs.topk(min(probs.shape[-1], settings.top_k or NUCLEUS_GUESS))
    if settings.top_k:
        best = best / best.sum(-1, keepdim=True)
    chosen = index.gather(1, _invert_nucleus(best, uniforms, settings.top_p)[:, None])[:, 0]
    if not settings.top_k:
        # Few rows are so flat that their nucleus is wider than the guess; only those are sorted.
        wide = best.sum(-1) < settings.top_p
        if wide.any():
            best, index = probs[wide].sort(descending=True)
            place = _invert_nucleus(best, uniforms[wide], settings.top_p)
            chosen[wide] = index.gather(1, place[:, None])[:, 0]
    return chosen


def _invert_nucleus(
    best: Float[Tensor, "B K"], uniforms: Float[Tensor, " B"], top_p: float
) -> Int[Tensor, " B"]:
    """Place in the descending weights; a token stays while the mass before it is below top_p."""
    before = best.cumsum(-1) - best
    return _invert(best.masked_fill(before >= top_p, 0), uniforms)


def _invert(weights: Float[Tensor, "B K"], uniforms: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    cumulative = weights.double().cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    place = torch.searchsorted(cumulative, uniforms[:, None].double() * total, right=True)
    # u < 1, so that only rounding can reach past the last token with weight.
    last = torch.searchsorted(cumulative, total)
    return torch.minimum(place, last)[:, 0]


def fitting(chat: ChatModel, rows: int, tokens: int) -> int:
    """How many of the rows, this many tokens each, free memory has room for; at least 1."""
    config = chat.text_config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys = len(chat.blocks) * heads * width * (tokens + ROOM)
    logits = config.vocab_size * LOGIT_COPIES * torch.float32.itemsize
    row = 2 * keys * chat.net.dtype.itemsize + logits
    return max(1, min(rows, int(MEMORY_SHARE * free_bytes(chat.device) / row)))


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
        start, end = self._length, self._length + key_states.shape[-2]
        if self._buffers is None or self._buffers[0].shape[-2] < end:
            rows = torch.arange(len(key_states), device=key_states.device)
            self._buffers = self._copied(rows, key_states, value_states, end + ROOM)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start:end, :] = states
        return self._viewed(end)

    def _copied(
        self, rows: Tensor, keys: Tensor, values: Tensor, room: int
    ) -> tuple[Tensor, Tensor]:
        """New buffers with `room` positions, holding what is cached of the rows."""
        olds = self._buffers or (None, None)
        news = []
        for like, old in zip((keys, values), olds, strict=True):
            new = like.new_empty(len(rows), *like.shape[1:-2], room, like.shape[-1])
            if old is not None:
                new[..., : self._length, :] = old[..., : self._length, :][rows]
            news.append(new)
        return news[0], news[1]

    def _viewed(self, length: int) -> tuple[Tensor, Tensor]:
        assert self._buffers is not None
        self._length = length
        keys, values = (buffer[..., :length, :] for buffer in self._buffers)
        self.keys, self.values = keys, values
        return keys, values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows at `indices`, which may repeat."""
        if self._buffers is not None:
            keys, values = self._buffers
            self._buffers = self._copied(indices, keys, values, self._length + ROOM)
            self._viewed(self._length)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row `repeats` times in place."""
        if self._buffers is not None:
            rows = torch.arange(len(self._buffers[0]), device=self._buffers[0].device)
            self.batch_select_indices(rows.repeat_interleave(repeats))


def roomy_cache(chat: ChatModel) -> DynamicCache:
    """A cache for the model; sliding-window layers keep transformers' own."""
    cache = DynamicCache(config=chat.net.config)
    cache.layers = [
        RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def slides(chat: ChatModel) -> bool:
    """Whether any of the model's layers attends through a sliding window."""
    return any(isinstance(layer, DynamicSlidingWindowLayer) for layer in roomy_cache(chat).layers)
