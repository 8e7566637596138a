"""Lines that are read on together: one cache, each row in its own state, aligned at their ends.

In: lines. Out: final states of what every row reads, parts combined. What lines of one system
prompt begin with is read once for every kind of row.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerheal.models.batch import launch_cost, left_padded, shared_prefix, token_budget
from steerheal.models.cache import RoomyCache, roomy_cache, slides
from steerheal.models.model import ChatModel
from steerheal.models.rows import Acting, Line


class Decoding:
    """A batch of lines and everything that was read of them."""

    def __init__(self, chat: ChatModel, lines: Sequence[Line]) -> None:
        """Around the model, or what a state's door gives; the lines may be in several states."""
        self._chat, self._count = chat, len(lines)
        self._lines = [line.spread(chat.parts) for line in lines]
        self._acting = chat.acting(self._lines)
        self._cache: RoomyCache = roomy_cache(chat)
        self._mask: Int[Tensor, "N S"]
        self._last: Int[Tensor, "N 1"]

    def start(
        self, scales: Sequence[float] | None = None, *, last: int = 1
    ) -> Float[Tensor, "B T W"]:
        """Reads the lines: states of their last tokens, left-padded, after what they share.

        Args:
            scales: What every row's doses are multiplied by; 1 when not given.
            last: Tokens whose states are asked for, at least.
        """
        chat, acting = self._chat, self._scaled(scales)
        rows, groups = forward_rows(chat, self._lines)
        # Padding between the shared part and the rest would count towards a sliding window.
        most, launch = min(map(len, rows)) - last, launch_cost(chat.device)
        start = 0 if slides(chat) else shared_in_groups(rows, groups, most, launch)
        if start:
            firsts, kinds = kinds_of(groups, acting)
            prefix = torch.tensor([rows[i][:start] for i in firsts], device=chat.device)
            some = None if acting is None else acting.select(torch.tensor(firsts))
            self._mask = torch.zeros_like(prefix)[:, :0]
            self._read(prefix, torch.ones_like(prefix), some)
            self._cache.batch_select_indices(kinds.to(chat.device))
        ids, mask, _ = left_padded([row[start:] for row in rows], 0, chat.device)
        self._mask = mask.new_ones(len(rows), start)
        return chat.combined(self._read(ids, mask, acting))

    def __len__(self) -> int:
        """Rows of the batch."""
        return self._count

    def on(
        self,
        ids: Int[Tensor, "B T"],
        mask: Int[Tensor, "B T"] | None = None,
        scales: Sequence[float] | None = None,
    ) -> Float[Tensor, "B T W"]:
        """Reads more tokens in every row; padding before a row's own is masked."""
        seen = torch.ones_like(ids) if mask is None else mask
        parts = self._chat.parts
        hidden = self._read(ids.repeat(parts, 1), seen.repeat(parts, 1), self._scaled(scales))
        return self._chat.combined(hidden)

    def again(self, scales: Sequence[float] | None = None) -> Float[Tensor, "B 1 W"]:
        """Reads every row's last token anew, at other doses."""
        self._cache.forget_last()
        seen, self._mask = self._mask[:, -1:], self._mask[:, :-1]
        return self._chat.combined(self._read(self._last, seen, self._scaled(scales)))

    def select(self, rows: Int[Tensor, " K"]) -> None:
        """Only these rows stay."""
        every = torch.cat([rows + part * self._count for part in range(self._chat.parts)])
        self._cache.batch_select_indices(every)
        self._mask, self._last, self._count = self._mask[every], self._last[every], len(rows)
        if self._acting is not None:
            self._acting = self._acting.select(every)

    def repeat(self, times: int) -> None:
        """Every row `times` times, copies side by side."""
        self._cache.batch_repeat_interleave(times)
        self._mask = self._mask.repeat_interleave(times, 0)
        self._last = self._last.repeat_interleave(times, 0)
        self._count *= times
        if self._acting is not None:
            every = torch.arange(len(self._acting)).repeat_interleave(times)
            self._acting = self._acting.select(every)

    def take_back(self, counts: Sequence[int]) -> None:
        """Forgets the last tokens of every row, as many as are said."""
        drop = torch.tensor(list(counts) * self._chat.parts, device=self._mask.device)
        sizes = self._mask.sum(1) - drop
        width = int(sizes.max())
        places = torch.zeros(len(sizes), width, dtype=torch.long, device=self._mask.device)
        mask = torch.zeros_like(places)
        for i, size in enumerate(sizes.tolist()):
            places[i, width - size :] = self._mask[i].nonzero()[:size, 0]
            mask[i, width - size :] = 1
        self._cache.select_positions(places)
        self._mask = mask

    def _scaled(self, scales: Sequence[float] | None) -> Acting | None:
        if scales is None or self._acting is None:
            return self._acting
        return self._acting.scaled(list(scales) * self._chat.parts)

    def _read(
        self, ids: Int[Tensor, "N T"], mask: Int[Tensor, "N T"], acting: Acting | None
    ) -> Float[Tensor, "N T D"]:
        """Final states of the forward's rows.

        A long read goes in pieces of columns: what one forward allocates beyond the allocator's own
        pool costs more to fault in than to compute.
        """
        positions = self._mask.sum(1, keepdim=True) + (mask.cumsum(1) - 1).clamp(min=0)
        self._mask, self._last = torch.cat([self._mask, mask], dim=1), ids[:, -1:]
        width, total = ids.shape[1], self._mask.shape[1]
        step = max(1, token_budget(self._chat.device) // len(ids))
        pieces = []
        for start in range(0, width, step):
            end = min(start + step, width)
            pieces.append(
                self._chat.hidden(
                    ids[:, start:end],
                    acting=acting,
                    attention_mask=self._mask[:, : total - width + end],
                    position_ids=positions[:, start:end],
                    past_key_values=self._cache,
                    use_cache=True,
                )
            )
        return torch.cat(pieces, dim=1)


def forward_rows(chat: ChatModel, lines: Sequence[Line]) -> tuple[list[list[int]], list[int]]:
    """The rows of a forward over the lines, and for each which system prompt it has."""
    rows, owners = [], []
    for part in range(chat.parts):
        rows += [list(line.parts[part]) for line in lines]
        owners += [chat.systems(line.state)[part] for line in lines]
    known = list(dict.fromkeys(owners))
    return rows, [known.index(owner) for owner in owners]


def shared_in_groups(
    rows: Sequence[Sequence[int]],
    groups: Sequence[int],
    limit: int | None = None,
    launch: int = 0,
) -> int:
    """How many tokens the rows of every group begin with; 0 when it is not worth it."""
    together: dict[int, list[Sequence[int]]] = {}
    for row, group in zip(rows, groups, strict=True):
        together.setdefault(group, []).append(row)
    most = min(map(len, rows)) - 1 if limit is None else limit
    several = [of for of in together.values() if len(of) > 1]
    return min((shared_prefix(of, most, launch) for of in several), default=0)


def kinds_of(groups: Sequence[int], acting: Acting | None) -> tuple[list[int], Int[Tensor, " N"]]:
    """A row of every kind, and every row's kind: one prefix is read for each."""
    if acting is not None:
        return acting.distinct(groups)
    return [groups.index(kind) for kind in range(max(groups) + 1)], torch.tensor(list(groups))
