"""Free answers to fixed prompts, and what the unsteered base thinks of them.

log-odds = mean over answers y of [ln p_base(y | positive, x) − ln p_base(y | negative, x)]
per token: the base is the judge of how much more the answer is what the positive pole would write.
Two phases: the state writes and leaves its hidden states, then the base judges.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from steerheal.config import SamplingSettings
from steerheal.measure.fluency import distinct, perplexity, tail_perplexity, word_repetition
from steerheal.models.asking import asked
from steerheal.models.finite import refuse_at_rest
from steerheal.models.generate import Draw, write
from steerheal.models.model import ChatModel
from steerheal.models.score import (
    Reading,
    continuation_states,
    kl_between,
    readings,
    token_logprobs,
)
from steerheal.personas import Pair, Persona
from steerheal.records import Completion, PersonaRow
from steerheal.state.values import base, entered


@dataclass(frozen=True)
class Answers:
    """What a state wrote, and what the logits that it drew the tokens from are made of."""

    completions: list[Completion]
    states: list[Float[Tensor, "_ W"]]
    """On the CPU."""
    writer: ChatModel | None = None
    """What the state's door gave: it makes the logits of the states; the judge when not given."""


def answers(
    chat: ChatModel,
    prompts: Sequence[str],
    sampling: SamplingSettings,
    *,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Answers:
    """One answer per prompt, the same seeds for every state."""
    return sweep(chat, prompts, sampling, seed=seed, progress=progress)[0]


def sweep(
    chat: ChatModel,
    prompts: Sequence[str],
    sampling: SamplingSettings,
    *,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Answers]:
    """What every entered state writes; all in the same batches, from the same seeds.

    A prompt's answer in a state is the one that `answers` gives there. Where a dose is too strong
    to go on, it ends and is marked as broken.

    Raises:
        UserError: logits that are not finite without a dose.
    """
    draws = [
        Draw(prompt, state, seed * 1_000_003 + i)
        for state in range(chat.entered)
        for i, prompt in enumerate(prompts)
    ]
    said, states = write(
        chat,
        draws,
        sampling,
        keep_states=True,
        keep_broken=True,
        progress=progress,
    )
    size = len(prompts)
    return [
        Answers(said[k * size : (k + 1) * size], states[k * size : (k + 1) * size], chat)
        for k in range(chat.entered)
    ]


def answer_pairs(
    chat: ChatModel, completions: Sequence[Completion], state: int = 0
) -> list[Reading]:
    """Prompts as an entered state reads them, with the completions to score after them."""
    return [(asked(chat, item.prompt, state=state), item.tokens) for item in completions]


def pole_logprobs(
    chat: ChatModel, completions: Sequence[Completion], poles: Persona | Pair
) -> tuple[list[Float[Tensor, " _"]], list[Float[Tensor, " _"]]]:
    """ln p(y | positive, x) and ln p(y | negative, x) of every completion, token by token.

    Args:
        chat: The judge, in no state.
        completions: What is judged.
        poles: What is read as system prompts.
    """
    prompted = [base().prompted(text) for text in (poles.positive, poles.negative)]
    with entered(chat, prompted) as reader:
        pairs = [pair for pole in (0, 1) for pair in answer_pairs(reader, completions, pole)]
        logs = token_logprobs(reader, pairs)
    return logs[: len(completions)], logs[len(completions) :]


def logodds(up: Float[Tensor, " _"], down: Float[Tensor, " _"], tokens: Sequence[int]) -> float:
    """[ln p(y | positive, x) − ln p(y | negative, x)] per token, nats; NaN without tokens."""
    return (up.sum() - down.sum()).item() / len(tokens) if tokens else math.nan


class Seen(NamedTuple):
    """What a state makes of given answers."""

    states: list[Float[Tensor, "_ W"]]
    reader: ChatModel
    """What the state's door gave."""


def judge(
    chat: ChatModel,
    answers: Answers,
    persona: Persona,
    previous: Seen | Literal["base"] | None = None,
) -> list[PersonaRow]:
    """The base's reading of every answer; a broken one is unread, of infinite perplexity.

    Args:
        chat: The model unsteered and unfolded.
        answers: What the state wrote.
        persona: Whose poles are compared.
        previous: What the student before this round makes of the same answers, or that it is the
            base itself.

    Raises:
        UserError: the base's logits on an answer are not finite.
    """
    completions = answers.completions
    up, down = pole_logprobs(chat, completions, persona)
    states = continuation_states(chat, answer_pairs(chat, completions))
    rows = []
    before = Seen(states, chat) if isinstance(previous, str) else previous
    for i, completion in enumerate(completions):
        if completion.broken:
            rows.append(_broken(completion))
            continue
        targets = torch.tensor(completion.tokens, device=chat.device)
        state = answers.states[i].to(states[i])
        read = readings(chat, states[i], targets, state, answers.writer)
        own = read.logprobs
        if not all(logs.isfinite().all() for logs in (own, up[i], down[i])):
            refuse_at_rest(chat)
        assert read.kls is not None
        rows.append(
            PersonaRow(
                completion=completion,
                logodds=logodds(up[i], down[i], completion.tokens),
                perplexity=perplexity(own.tolist()),
                tail_perplexity=tail_perplexity(own.tolist()),
                kl_to_base=read.kls.mean().item(),
                kl_to_previous=math.nan
                if before is None
                else kl_between(before.reader, state, before.states[i], answers.writer or chat)
                .mean()
                .item(),
                word_repetition=word_repetition(completion.text),
                distinct_2=distinct(completion.text, 2),
                logprobs=_rounded(own),
                entropies=_rounded(read.entropies),
            )
        )
    return rows


def _rounded(nats: Float[Tensor, " _"]) -> tuple[float, ...]:
    """To a thousandth of a nat, which is what records keep of a token."""
    return tuple(round(value, 3) for value in nats.tolist())


def _broken(completion: Completion) -> PersonaRow:
    """An answer that broke off: infinite perplexity says that it is bad, the rest is unknown."""
    return PersonaRow(
        completion=completion,
        logodds=math.nan,
        perplexity=math.inf,
        tail_perplexity=math.inf,
        kl_to_base=math.nan,
        word_repetition=math.nan,
        distinct_2=math.nan,
    )
