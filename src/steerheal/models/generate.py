"""Sampling: one call mixes prompts, seeds and doses; each row is as if it were alone.

In: draws, sampling settings, and how the dose runs along a completion. Out: completions. A draw
says which of the entered states writes it; what a state is, and who computes its tokens
(`engines`), is none of this module's business.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from steerheal.config import PushSettings, SamplingSettings
from steerheal.models.asking import asked
from steerheal.models.chat import decode
from steerheal.models.engines.engine import Order, find, unwatched
from steerheal.models.model import ChatModel
from steerheal.models.push import Row
from steerheal.models.template import Message
from steerheal.models.thinking import thought_in
from steerheal.records import Completion


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
    watch: Callable[[Sequence[Row]], None] = unwatched,
) -> Written:
    """As `generate`; with `keep_states` also the state behind every token, on the CPU.

    After every token `watch` is given the rows that are still written; it may end some of them.
    """
    lines = [asked(chat, draw.turns, state=draw.state) for draw in draws]
    chat.refuse_longer(max(map(len, lines), default=0), written=settings.tokens)
    way = push or PushSettings()
    order = Order(
        lines,
        [chat.dose(draw.state) for draw in draws],
        [draw.seed for draw in draws],
        settings,
        push=way,
        keep_states=keep_states,
        keep_broken=keep_broken,
        progress=progress,
        watch=watch,
    )
    rows = find(settings.engine).write(chat, order)
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
