"""Batched sampling: one batch mixes prompts, seeds and doses; each row is as if it were alone.

In: draws, sampling settings, and how the dose runs along a completion. Out: completions. A draw
says which of the entered states writes it; what a state is, the sampler need not know.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerheal.config import PushSettings, SamplingSettings
from steerheal.models.asking import asked
from steerheal.models.batch import shrinking
from steerheal.models.cache import fitting
from steerheal.models.chat import decode
from steerheal.models.choose import Uniforms, choose
from steerheal.models.model import ChatModel
from steerheal.models.push import Pushed, Row
from steerheal.models.template import Message
from steerheal.models.thinking import thought_in
from steerheal.ranks import lent, merged, share_of
from steerheal.records import Completion

COMPACT_SHARE = 0.25
"""Finished rows leave the batch once they are this share of it."""
SPARE_UNIFORMS = 16
"""Uniforms drawn ahead beyond one per token; rejections and rewinds use more."""


@dataclass(frozen=True)
class Draw:
    """One row to sample."""

    prompt: str
    state: int = 0
    """Which of the entered states writes it."""
    seed: int = 0
    before: tuple[Message, ...] = ()
    """What was said before, as (role, text) turns."""

    @property
    def turns(self) -> list[Message]:
        """The conversation that the row answers."""
        return [*self.before, ("user", self.prompt)]


class Written(NamedTuple):
    """Completions, and what the logits that each of their tokens was drawn from are made of."""

    completions: list[Completion]
    states: list[Float[Tensor, "_ W"]]


def generate(
    chat: ChatModel,
    draws: Sequence[Draw],
    settings: SamplingSettings,
    *,
    push: PushSettings | None = None,
    keep_broken: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Completion]:
    """A completion for every draw, in the order given.

    Args:
        chat: The model, or what a state's door gives.
        draws: Prompts with their states and seeds.
        settings: Lengths, temperature, nucleus, rows per batch.
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
    push: PushSettings | None = None,
    keep_states: bool = False,
    keep_broken: bool = False,
    progress: Callable[[int], None] = lambda _: None,
    watch: Callable[[Sequence[Row]], None] = lambda _: None,
) -> Written:
    """As `generate`; with `keep_states` also the state behind every token, on the CPU.

    After every token `watch` is given the rows that are still written; it may end some of them.
    """
    lines = [asked(chat, draw.turns, state=draw.state) for draw in draws]
    doses = [chat.dose(draw.state) for draw in draws]
    done: dict[int, Row] = {}
    stops = torch.tensor(chat.stop_ids(), device=chat.device)
    way = push or PushSettings()

    def work(indices: list[int]) -> None:
        rows = [Row(lines[i], doses[i], keep_states=keep_states) for i in indices]
        seeds = [draws[i].seed for i in indices]
        batch = Pushed(chat, rows, way)
        _decode(chat, batch, seeds, settings, stops=stops, keep_broken=keep_broken, watch=watch)
        done.update(zip(indices, rows, strict=True))
        progress(len(indices))

    order = share_of(sorted(range(len(draws)), key=lambda i: (len(lines[i]), i)))
    longest = max(map(len, lines), default=0)
    chat.refuse_longer(longest, written=settings.tokens)
    longest += settings.tokens
    # The base's rows of a push take room as well, and so does every part of a state.
    each = 2 * chat.parts
    size = max(1, min(settings.rows, fitting(chat, each * settings.rows, longest) // each))
    for start in range(0, len(order), size):
        shrinking(order[start : start + size], work)
    for row in done.values():
        row.states = [lent(state) for state in row.states]
    done = merged(done)
    rows = [done[i] for i in range(len(draws))]
    opened = chat.template.opens()
    return Written(
        [
            _completion(chat, draw, row, way, opened=opened)
            for draw, row in zip(draws, rows, strict=True)
        ],
        [_states(chat, row) for row in rows] if keep_states else [],
    )


def _states(chat: ChatModel, row: Row) -> Float[Tensor, "_ W"]:
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
        dose=row.dose,
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
    keep_broken: bool,
    watch: Callable[[Sequence[Row]], None],
) -> None:
    """Fills every row's tokens, its stop token included."""
    live = torch.arange(len(seeds), device=chat.device)
    uniforms = Uniforms(seeds, settings.tokens + SPARE_UNIFORMS, chat.device)
    batch.start()
    while True:
        batch.end_broken(keep=keep_broken)
        chosen = choose(batch.logits, uniforms.among(live), settings)
        batch.append(chosen, torch.isin(chosen, stops), settings.tokens)
        watch(batch.rows)
        over = torch.tensor([row.over for row in batch.rows], device=chat.device)
        if over.all():
            return
        if over.float().mean() >= COMPACT_SHARE:
            keep = (~over).nonzero()[:, 0]
            batch.select(keep)
            live = live[keep]
        batch.step()
