"""Residual-stream states at a persona's two poles, which every extraction method starts from.

h_ℓ is the residual stream after decoder block ℓ. A state is read at the assistant tag (the last
token of the chat-templated prompt), or over a short greedy answer that the pole itself writes: at
its last token, or as the mean over its tokens. A stop token is no part of an answer.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from steerheal.config import SamplingSettings, VectorSettings
from steerheal.models.batch import by_length, launch_cost, shrinking, token_budget
from steerheal.models.chat import prompt_ids
from steerheal.models.generate import Draw, generate
from steerheal.models.hooks import recording
from steerheal.models.model import ChatModel
from steerheal.models.score import hidden_after_shared
from steerheal.state.values import base, entered

Span = tuple[int, int]
"""First position read in a row of tokens, and the one after the last."""
Side = Literal[0, 1]
"""The positive pole, and the one that it is compared with."""
SIDES: tuple[Side, Side] = (0, 1)


@dataclass(frozen=True)
class PoleStates:
    """One pole's states after one block, float32 on the CPU, one row per context."""

    batches: tuple[Float[Tensor, "_ D"], ...]
    """As they were read: rows of similar length together."""
    order: tuple[int, ...]
    """The context of every row, batches one after another."""

    def rows(self) -> Float[Tensor, "N D"]:
        """The states in the order of the contexts."""
        return torch.cat(self.batches)[torch.tensor(self.order).argsort()]


@dataclass(frozen=True)
class Poles:
    """Both poles' states after one block, over the same contexts."""

    positive: PoleStates
    negative: PoleStates

    def differences(self) -> Float[Tensor, "N D"]:
        """h⁺ − h⁻ per context."""
        return self.positive.rows() - self.negative.rows()


@dataclass(frozen=True)
class Source:
    """What a method may draw on: the model, both poles' system prompts, contexts, settings."""

    chat: ChatModel
    """The model as it stands: a student's, where one was entered."""
    wordings: Sequence[tuple[str, str]]
    """System prompts of the positive pole and of the one it is compared with; a context is read
    under one of the pairs, which take turns."""
    contexts: Sequence[str]
    settings: VectorSettings
    layers: list[int]
    """Blocks that get a direction."""
    progress: Callable[[int], None] = lambda _: None
    """Called with the number of rows written or read since the last call."""

    def poles(self) -> dict[int, Poles]:
        """Per block, both poles' states at the settings' position."""
        return paired(*(self._pole(side) for side in SIDES))

    def prompts(self, side: Side | None = None) -> list[list[int]]:
        """Every context under its system prompt of a side, or under none, as token ids."""
        turns = itertools.cycle(self.wordings)
        return [
            prompt_ids(self.chat, context, system="" if side is None else pair[side])
            for context, pair in zip(self.contexts, turns, strict=False)
        ]

    def answers(self, side: Side) -> list[list[int]]:
        """What the model answers greedily to every context under a side, as token ids."""
        sampling = SamplingSettings(tokens=self.settings.answer_tokens, temperature=0)
        count = len(self.wordings)
        draws = [Draw(context, i % count) for i, context in enumerate(self.contexts)]
        with entered(self.chat, [base().prompted(pair[side]) for pair in self.wordings]) as reader:
            said = generate(reader, draws, sampling, progress=self.progress)
        stops = set(self.chat.stop_ids())
        return [
            [token for token in one.tokens if token not in stops] or list(one.tokens)
            for one in said
        ]

    def read(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]] | None = None
    ) -> dict[int, PoleStates]:
        """States at the prompts' last token; given answers, the mean over the answers' tokens."""
        if answers is None:
            return read(self, prompts, [(len(row) - 1, len(row)) for row in prompts])
        both = list(zip(prompts, answers, strict=True))
        spans = [(len(prompt), len(prompt) + len(answer)) for prompt, answer in both]
        return read(self, [[*prompt, *answer] for prompt, answer in both], spans)

    def _pole(self, side: Side) -> dict[int, PoleStates]:
        prompts = self.prompts(side)
        if self.settings.position == "tag":
            return self.read(prompts)
        answers = self.answers(side)
        if self.settings.position == "mean":
            return self.read(prompts, answers)
        return self.read([[*a, *b] for a, b in zip(prompts, answers, strict=True)])


def paired(positive: dict[int, PoleStates], negative: dict[int, PoleStates]) -> dict[int, Poles]:
    """Two poles side by side, per block."""
    return {layer: Poles(states, negative[layer]) for layer, states in positive.items()}


@torch.no_grad()
def read(
    source: Source, rows: Sequence[Sequence[int]], spans: Sequence[Span]
) -> dict[int, PoleStates]:
    """The mean state over each row's span, per block; read in batches of similar length."""
    chat, layers = source.chat, source.layers
    batches: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    order: list[int] = []

    def work(batch: list[int]) -> None:
        first = min(spans[i][0] for i in batch)
        with recording(chat, layers) as seen:
            _, skipped = hidden_after_shared(chat, [rows[i] for i in batch], first)
        places = [(spans[i][0] - skipped, spans[i][1] - skipped) for i in batch]
        means = {layer: _means(seen[layer], places) for layer in layers}
        for layer, mean in means.items():
            batches[layer].append(mean)
        order.extend(batch)
        source.progress(len(batch))

    budget, launch = token_budget(chat.device), launch_cost(chat.device)
    for batch in by_length([len(row) for row in rows], budget, launch=launch):
        shrinking(batch, work)
    return {layer: PoleStates(tuple(found), tuple(order)) for layer, found in batches.items()}


def _means(states: Float[Tensor, "B T D"], places: Sequence[Span]) -> Float[Tensor, "B D"]:
    """Float32 means over the places, on the CPU."""
    if all(stop - start == 1 for start, stop in places):
        at = torch.tensor([start for start, _ in places], device=states.device)
        rows = torch.arange(len(places), device=states.device)
        return states[rows, at].float().cpu()
    means = [states[row, start:stop].float().mean(0) for row, (start, stop) in enumerate(places)]
    return torch.stack(means).cpu()
