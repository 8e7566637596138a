"""This package's own sampler: any states and doses in one batch, on the model as it is loaded.

Every row draws from a stream of its own, so that its text depends neither on the batch around it
nor on the process that writes it.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from steerheal.models.batch import shrinking
from steerheal.models.cache import fitting
from steerheal.models.choose import Uniforms, choose
from steerheal.models.engines.engine import Engine, Order
from steerheal.models.model import ChatModel
from steerheal.models.push import Pushed, Row
from steerheal.ranks import follow, lent, merged, share_of

COMPACT_SHARE = 0.25
"""Finished rows leave the batch once they are this share of it."""
SPARE_UNIFORMS = 16
"""Uniforms drawn ahead beyond one per token; rejections and rewinds use more."""


@torch.no_grad()
def write(chat: ChatModel, order: Order) -> list[Row]:
    """The rows in batches of alike lengths, shared out where there are several processes."""
    done: dict[int, Row] = {}
    stops = torch.tensor(chat.stop_ids(), device=chat.device)

    def work(indices: list[int]) -> None:
        rows = [order.row(i) for i in indices]
        batch = Pushed(chat, rows, order.push)
        _decode(chat, batch, [order.seeds[i] for i in indices], order, stops)
        done.update(zip(indices, rows, strict=True))
        order.progress(len(indices))

    count, most = len(order.lines), order.settings.rows
    own = share_of(sorted(range(count), key=lambda i: (len(order.lines[i]), i)))
    # The base's rows of a push take room as well, and so does every part of a state.
    each = 2 * chat.parts
    size = max(1, min(most, fitting(chat, each * most, order.longest) // each))
    for start in range(0, len(own), size):
        shrinking(own[start : start + size], work)
    for row in done.values():
        row.states = [lent(state) for state in row.states]
    done = merged(done)
    return [done[i] for i in range(count)]


@torch.inference_mode()
def _decode(
    chat: ChatModel,
    batch: Pushed,
    seeds: Sequence[int],
    order: Order,
    stops: Int[Tensor, " S"],
) -> None:
    """Fills every row's tokens, its stop token included."""
    live = torch.arange(len(seeds), device=chat.device)
    uniforms = Uniforms(seeds, order.settings.tokens + SPARE_UNIFORMS, chat.device)
    batch.start()
    while True:
        batch.end_broken(keep=order.keep_broken)
        chosen = choose(batch.logits, uniforms.among(live), order.settings)
        follow(chosen)
        batch.append(chosen, torch.isin(chosen, stops), order.settings.tokens)
        order.watch(batch.rows)
        over = torch.tensor([row.over for row in batch.rows], device=chat.device)
        if over.all():
            return
        if over.float().mean() >= COMPACT_SHARE:
            keep = (~over).nonzero()[:, 0]
            batch.select(keep)
            live = live[keep]
        batch.step()


ENGINE = Engine(write)
