"""Batched sampling: one batch mixes prompts, seeds and doses; each row is as if it were alone.

In: draws, sampling settings, and how the dose runs along a completion. Out: completions. The
sampler sets the dose of every row through a `Dosed` and knows nothing else of steering.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerheal.config import PushSettings, SamplingSettings
from steerheal.models.batch import (
    left_padded,
    levels_of,
    shared_prefix,
    shrinking,
    token_budget,
)
from steerheal.models.cache import RoomyCache, fitting, roomy_cache, slides
from steerheal.models.chat import decode, prompt_ids
from steerheal.models.choose import Uniforms, choose
from steerheal.models.hooks import Dosed, at
from steerheal.models.model import ChatModel
from steerheal.models.push import Pushed, Row
from steerheal.models.thinking import thought_in
from steerheal.records import Completion

COMPACT_SHARE = 0.25
"""Finished rows leave the batch once they are this share of it."""
SPARE_UNIFORMS = 16
"""Uniforms drawn ahead beyond one per token; rejections and rewinds use more."""


@dataclass(frozen=True)
class Draw:
    """One row to sample."""

    prompt: str
    dose: float = 0.0
    seed: int = 0


class Written(NamedTuple):
    """Completions, and the final hidden state that each of their tokens was drawn from."""

    completions: list[Completion]
    states: list[Float[Tensor, "_ D"]]


def generate(
    chat: ChatModel,
    draws: Sequence[Draw],
    settings: SamplingSettings,
    *,
    system: str = "",
    dosed: Dosed | None = None,
    push: PushSettings | None = None,
    keep_broken: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Completion]:
    """A completion for every draw, in the order given.

    Args:
        chat: The model, possibly inside `adding` or `folded`.
        draws: Prompts with their doses and seeds.
        settings: Lengths, temperature, nucleus, rows per batch.
        system: System prompt of every row.
        dosed: The handle from `adding`; required when any dose is not 0.
        push: How the dose runs along a completion; constant when not given.
        keep_broken: A row whose logits are not finite at its dose ends there and is marked, instead
            of ending everything; without a dose they always do.
        progress: Called with the number of rows finished since the last call.

    Raises:
        UserError: logits that are not finite.
    """
    return write(
        chat,
        draws,
        settings,
        system=system,
        dosed=dosed,
        push=push,
        keep_broken=keep_broken,
        progress=progress,
    ).completions


@torch.no_grad()
def write(
    chat: ChatModel,
    draws: Sequence[Draw],
    settings: SamplingSettings,
    *,
    system: str = "",
    dosed: Dosed | None = None,
    push: PushSettings | None = None,
    keep_states: bool = False,
    keep_broken: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Written:
    """As `generate`; with `keep_states` also the state behind every token, on the CPU."""
    assert dosed is not None or all(draw.dose == 0 for draw in draws), "doses without a vector"
    prompts = [prompt_ids(chat, draw.prompt, system=system) for draw in draws]
    done: dict[int, Row] = {}
    stops = torch.tensor(chat.stop_ids(), device=chat.device)
    way = push or PushSettings()

    def work(indices: list[int]) -> None:
        rows = [Row(prompts[i], draws[i].dose, keep_states=keep_states) for i in indices]
        seeds = [draws[i].seed for i in indices]
        batch = Pushed(chat, rows, way, dosed)
        _decode(chat, batch, seeds, settings, stops=stops, dosed=dosed, keep_broken=keep_broken)
        done.update(zip(indices, rows, strict=True))
        progress(len(indices))

    order = sorted(range(len(draws)), key=lambda i: (len(prompts[i]), i))
    longest = max(map(len, prompts), default=0)
    chat.refuse_longer(longest, written=settings.tokens)
    longest += settings.tokens
    # The base's rows of a push take room as well.
    fit = fitting(chat, 2 * settings.rows, longest)
    size = max(1, min(settings.rows, fit // 2))
    for start in range(0, len(order), size):
        shrinking(order[start : start + size], work)
    rows = [done[i] for i in range(len(draws))]
    opened = chat.template.opens()
    return Written(
        [
            _completion(chat, draw, row, way, opened=opened)
            for draw, row in zip(draws, rows, strict=True)
        ],
        [_states(chat, row) for row in rows] if keep_states else [],
    )


def _states(chat: ChatModel, row: Row) -> Float[Tensor, "_ D"]:
    if not row.states:  # broken before its first token
        return torch.empty(0, chat.text_config.hidden_size, dtype=chat.net.dtype)
    return torch.stack(row.states).cpu()


def _completion(
    chat: ChatModel, draw: Draw, row: Row, push: PushSettings, *, opened: bool
) -> Completion:
    text = decode(chat, row.tokens).strip()
    return Completion(
        prompt=draw.prompt,
        text=text,
        tokens=tuple(row.tokens),
        dose=draw.dose,
        seed=draw.seed,
        ended=bool(row.tokens) and row.tokens[-1] in chat.stop_ids(),
        rewinds=row.rewinds,
        doses=() if push == PushSettings() else tuple(row.doses),
        broken=row.broken,
        thought=thought_in(text, opened=opened),
    )


@torch.inference_mode()
def _decode(
    chat: ChatModel,
    batch: Pushed,
    seeds: Sequence[int],
    settings: SamplingSettings,
    *,
    stops: Int[Tensor, " S"],
    dosed: Dosed | None,
    keep_broken: bool,
) -> None:
    """Fills every row's tokens, its stop token included."""
    live = torch.arange(len(seeds), device=chat.device)
    uniforms = Uniforms(seeds, settings.tokens + SPARE_UNIFORMS, chat.device)
    read = prefilled(chat, *batch.prompts(), dosed)
    batch.start(read.hidden[:, -1], read.cache, read.mask)
    while True:
        batch.end_broken(keep=keep_broken)
        chosen = choose(batch.logits, uniforms.among(live), settings)
        batch.append(chosen, torch.isin(chosen, stops), settings.tokens)
        over = torch.tensor([row.over for row in batch.rows], device=chat.device)
        if over.all():
            return
        if over.float().mean() >= COMPACT_SHARE:
            keep = (~over).nonzero()[:, 0]
            batch.select(keep)
            live = live[keep]
        batch.step()


class Prefilled(NamedTuple):
    """Prompts that were read: where decoding goes on."""

    hidden: Float[Tensor, "B T D"]
    """Final states of the left-padded prompts, after what they share."""
    cache: RoomyCache
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
        distinct, each = levels_of(None if dosed is None else doses, rows, chat.device)
        prefix = torch.tensor([list(prompts[0][:start])] * len(distinct), device=chat.device)
        with at(dosed, distinct if doses is not None else None):
            read_on(chat, prefix, torch.ones_like(prefix), cache)
        cache.batch_select_indices(each)
    ids, mask, positions = left_padded([prompt[start:] for prompt in prompts], 0, chat.device)
    mask = torch.cat([mask.new_ones(rows, start), mask], dim=1)
    positions = positions + start
    with at(dosed, doses):
        hidden = read_on(chat, ids, mask, cache, positions)
    return Prefilled(hidden, cache, mask, positions)


def read_on(
    chat: ChatModel,
    ids: Int[Tensor, "B T"],
    mask: Int[Tensor, "B S"],
    cache: RoomyCache,
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
