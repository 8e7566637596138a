"""Rows that readings bring themselves: what a state answers to their prompts and makes of texts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from steerheal.config import SamplingSettings
from steerheal.measure import free
from steerheal.measure.readings.table import Answer
from steerheal.models.chat import document_ids
from steerheal.models.finite import refuse_at_rest
from steerheal.models.model import ChatModel
from steerheal.models.score import (
    chosen_logprobs,
    continuation_states,
    kl_between,
    token_logprobs,
)
from steerheal.personas import Persona
from steerheal.records import Scores
from steerheal.state.values import State


@dataclass(frozen=True)
class Asker:
    """What an entry of the table of readings makes its rows with."""

    chat: ChatModel
    """In no state: the base."""
    state: State
    persona: Persona
    scores: Scores
    """What the evaluation has read of the state so far."""
    sampling: SamplingSettings
    seed: int
    """Of what is sampled; the same for every state."""
    progress: Callable[[int], None] = lambda _: None

    def answers(self, prompts: Sequence[str], tokens: int, *, greedy: bool = False) -> list[Answer]:
        """What the state writes to the prompts, and what the base makes of it.

        Raises:
            UserError: the base's logits on an answer are not finite.
        """
        changes: dict[str, float] = {"tokens": tokens} | ({"temperature": 0.0} if greedy else {})
        sampling = self.sampling.model_copy(update=changes)
        with self.state.entered(self.chat) as reader:
            said = free.answers(reader, prompts, sampling, seed=self.seed, progress=self.progress)
        pairs = free.answer_pairs(self.chat, said.completions)
        found = []
        for i, states in enumerate(continuation_states(self.chat, pairs)):
            completion = said.completions[i]
            if completion.broken:
                found.append(Answer(completion, nll=math.inf, kl=math.nan))
                continue
            targets = torch.tensor(completion.tokens, device=self.chat.device)
            logs = chosen_logprobs(self.chat, states, targets)
            if not logs.isfinite().all():
                refuse_at_rest(self.chat)
            kl = kl_between(self.chat, said.states[i].to(states), states, said.writer)
            found.append(Answer(completion, nll=-logs.mean().item(), kl=kl.mean().item()))
        return found

    def texts(self, texts: Sequence[str]) -> list[float]:
        """Mean negative log-likelihood per token of plain texts under the state, nats."""
        with self.state.entered(self.chat) as reader:
            logs = token_logprobs(reader, [document_ids(reader, text) for text in texts])
        return [-row.mean().item() for row in logs]
