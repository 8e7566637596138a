"""Rows that readings bring themselves: what a state answers to their prompts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import nn

from steerheal.config import MeasureSettings, SamplingSettings
from steerheal.measure import free
from steerheal.measure.poles import expected_logodds
from steerheal.measure.readings.table import Answer, Rules
from steerheal.measure.spill import apart, base_texts
from steerheal.models.finite import refuse_at_rest
from steerheal.models.generate import Draw, generate
from steerheal.models.model import ChatModel
from steerheal.models.score import (
    chosen_logprobs,
    continuation_states,
    kl_between,
)
from steerheal.personas import Pair, Persona
from steerheal.records import Completion, Scores
from steerheal.state.values import State, base

_WRITTEN: WeakKeyDictionary[nn.Module, dict[object, list[Completion]]] = WeakKeyDictionary()
"""What the base of a model has written already, by what it was asked and how."""


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
    measure: MeasureSettings
    said: free.Answers
    """The free answers behind the scores, with what their tokens were drawn from."""
    rules: Rules | None = None
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

    def trait(self, pairs: Sequence[Pair]) -> list[list[float]]:
        """Expected log-odds of every free answer under every wording; NaN where it broke off."""
        poles = [(pair.positive, pair.negative) for pair in pairs]
        said = self.said.completions
        found = [[math.nan] * len(poles)] * len(said)
        whole = [i for i, answer in enumerate(said) if not answer.broken]
        answers = free.Answers(
            [said[i] for i in whole], [self.said.states[i] for i in whole], self.said.writer
        )
        for i, row in zip(whole, expected_logodds(self.chat, answers, poles), strict=True):
            found[i] = row.tolist()
        return found

    def writes(self, prompts: Sequence[str], tokens: int) -> list[Completion]:
        """What the state answers greedily; an answer breaks off where the dose is too strong."""
        greedy = self.sampling.model_copy(update={"tokens": tokens, "temperature": 0.0})
        draws = [Draw(prompt, seed=self.seed * 1_000_003 + i) for i, prompt in enumerate(prompts)]
        with self.state.entered(self.chat) as reader:
            return generate(reader, draws, greedy, keep_broken=True, progress=self.progress)

    def base_answers(self, prompts: Sequence[str], tokens: int) -> list[Completion]:
        """What the base answers, written once per model, settings and seed in this process."""
        sampling = self.sampling.model_copy(update={"tokens": tokens})
        written = _WRITTEN.setdefault(self.chat.net, {})
        key = (tuple(prompts), sampling.model_dump_json(), self.seed)
        if key not in written:
            written[key] = base_texts(self.chat, prompts, sampling, seed=self.seed)
        return written[key]

    def apart(self, answers: Sequence[Completion]) -> list[tuple[float, float]]:
        """Mean KL(state‖base) and KL(base‖state) per token on given answers with tokens, nats."""
        if self.state == base():
            return [(0.0, 0.0)] * len(answers)
        return apart(self.chat, self.state, answers)
