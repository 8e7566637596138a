"""The key-value cache of batched decoding: room to grow, rows and positions to choose from."""

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from steerheal.models.batch import free_bytes
from steerheal.models.model import ChatModel
from steerheal.ranks import least

ROOM = 64
"""Positions by which the cache's buffers grow."""
MEMORY_SHARE = 0.5
"""Share of the free memory that a batch may plan to fill."""
LOGIT_COPIES = 6
"""Vocabulary-wide float32 rows that choosing a token holds at once, at most."""


class RoomyLayer(DynamicLayer):
    """A cache layer that writes into a buffer with room, instead of copying itself every token.

    Layers with a sliding window keep every position too: their mask still applies the window, and
    positions can be taken back.
    """

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

    def forget_last(self) -> None:
        """Takes the last position of every row back; the next one overwrites it."""
        if self._buffers is not None:
            self._viewed(self._length - 1)

    def select_positions(self, places: Int[Tensor, "B S"]) -> None:
        """Keeps the named positions of every row, in that order."""
        if self._buffers is not None:
            news = []
            for old in self._buffers:
                index = places[:, None, :, None].expand(-1, old.shape[1], -1, old.shape[-1])
                new = old.new_empty(*old.shape[:-2], places.shape[1] + ROOM, old.shape[-1])
                new[..., : places.shape[1], :] = old.gather(-2, index)
                news.append(new)
            self._buffers = (news[0], news[1])
            self._viewed(places.shape[1])


class RoomyCache(DynamicCache):
    """A cache for the model whose layers all have room, sliding-window layers included."""

    def __init__(self, chat: ChatModel) -> None:
        super().__init__(config=chat.net.config)
        self.layers = [
            RoomyLayer() if isinstance(layer, DynamicLayer) else layer for layer in self.layers
        ]

    def forget_last(self) -> None:
        """Takes the last position of every row back."""
        for layer in self._roomy():
            layer.forget_last()

    def select_positions(self, places: Int[Tensor, "B S"]) -> None:
        """Keeps the named positions of every row, in that order."""
        for layer in self._roomy():
            layer.select_positions(places)

    def _roomy(self) -> list[RoomyLayer]:
        roomy = [layer for layer in self.layers if isinstance(layer, RoomyLayer)]
        assert len(roomy) == len(self.layers), "a layer that cannot take positions back"
        return roomy


def roomy_cache(chat: ChatModel) -> RoomyCache:
    """An empty cache for the model."""
    return RoomyCache(chat)


def slides(chat: ChatModel) -> bool:
    """Whether any of the model's layers attends through a sliding window."""
    layers = DynamicCache(config=chat.net.config).layers
    return any(isinstance(layer, DynamicSlidingWindowLayer) for layer in layers)


def fitting(chat: ChatModel, rows: int, tokens: int, *, copies: int = 1) -> int:
    """How many of the rows, this many tokens each, free memory has room for; at least 1.

    Every row has `copies` caches at once.
    """
    logits = chat.text_config.vocab_size * LOGIT_COPIES * torch.float32.itemsize
    row = copies * token_bytes(chat) * (tokens + ROOM) + logits
    return max(1, min(rows, int(MEMORY_SHARE * least(free_bytes(chat.device)) / row)))


def token_bytes(chat: ChatModel) -> int:
    """Bytes of keys and values that a cache keeps of every token."""
    config = chat.text_config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * len(chat.blocks) * heads * width * chat.net.dtype.itemsize
