"""Free answers to fixed prompts, and what the unsteered base thinks of them.

persona_logodds = mean over answers y of [ln p_base(y | positive, x) − ln p_base(y | negative, x)]
per token: the base is the judge of how much more the answer is what the positive pole would write.
Two phases: the state writes and leaves its hidden states, then the base judges.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from steerheal.config import SamplingSettings
from steerheal.measure.fluency import distinct, perplexity, tail_perplexity, word_repetition
from steerheal.models.chat import prompt_ids
from steerheal.models.finite import refuse_at_rest
from steerheal.models.generate import Draw, write
from steerheal.models.hooks import Dosed
from steerheal.models.model import ChatModel
from steerheal.models.score import (
    Pair,
    chosen_logprobs,
    continuation_states,
    kl_between,
    token_logprobs,
)
from steerheal.records import Completion, PersonaRow
from steerheal.steer.persona import Persona


@dataclass(frozen=True)
class Answers:
    """What a state wrote, and the final hidden states that it drew the tokens from, on the CPU."""

    completions: list[Completion]
    states: list[Float[Tensor, "_ D"]]


def answers(
    chat: ChatModel,
    prompts: Sequence[str],
    sampling: SamplingSettings,
    *,
    seed: int,
    dose: float = 0.0,
    dosed: Dosed | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Answers:
    """One answer per prompt in the model's present state, the same seeds for every state."""
    return sweep(chat, prompts, sampling, [dose], dosed, seed=seed, progress=progress)[0]


def sweep(
    chat: ChatModel,
    prompts: Sequence[str],
    sampling: SamplingSettings,
    doses: Sequence[float],
    handle: Dosed | None,
    *,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Answers]:
    """What every dose writes; all doses in the same batches, from the same seeds.

    A prompt's answer at a dose is the one that `answers` gives at that dose. Where a dose is too
    strong to go on, it ends and is marked as broken.

    Raises:
        UserError: logits that are not finite without a dose.
    """
    draws = [
        Draw(prompt, dose, seed * 1_000_003 + i)
        for dose in doses
        for i, prompt in enumerate(prompts)
    ]
    said, states = write(
        chat,
        draws,
        sampling,
        dosed=handle,
        keep_states=True,
        keep_broken=True,
        progress=progress,
    )
    size = len(prompts)
    return [
        Answers(said[k * size : (k + 1) * size], states[k * size : (k + 1) * size])
        for k in range(len(doses))
    ]


def answer_pairs(
    chat: ChatModel, completions: Sequence[Completion], system: str = ""
) -> list[Pair]:
    """Prompts under a system prompt, with the completions to score after them."""
    return [(prompt_ids(chat, item.prompt, system=system), item.tokens) for item in completions]


def judge(
    base: ChatModel,
    answers: Answers,
    persona: Persona,
    previous: Sequence[Float[Tensor, "_ D"]] | Literal["base"] | None = None,
) -> list[PersonaRow]:
    """The base's reading of every answer; a broken one is unread, of infinite perplexity.

    Args:
        base: The model unsteered and unfolded.
        answers: What the state wrote.
        persona: Whose poles are compared.
        previous: Final hidden states of the student before this round on the same answers, or
            that it is the base itself.

    Raises:
        UserError: the base's logits on an answer are not finite.
    """
    completions = answers.completions
    up = token_logprobs(base, answer_pairs(base, completions, persona.positive))
    down = token_logprobs(base, answer_pairs(base, completions, persona.negative))
    states = continuation_states(base, answer_pairs(base, completions))
    rows = []
    before = states if previous == "base" else previous
    for i, completion in enumerate(completions):
        if completion.broken:
            rows.append(_broken(completion))
            continue
        targets = torch.tensor(completion.tokens, device=base.device)
        own = chosen_logprobs(base, states[i], targets)
        if not all(logs.isfinite().all() for logs in (own, up[i], down[i])):
            refuse_at_rest(base)
        state = answers.states[i].to(states[i])
        rows.append(
            PersonaRow(
                completion=completion,
                logodds=(up[i].sum() - down[i].sum()).item() / len(completion.tokens),
                perplexity=perplexity(own.tolist()),
                tail_perplexity=tail_perplexity(own.tolist()),
                kl_to_base=kl_between(base, state, states[i]).mean().item(),
                kl_to_previous=math.nan
                if before is None
                else kl_between(base, state, before[i]).mean().item(),
                word_repetition=word_repetition(completion.text),
                distinct_2=distinct(completion.text, 2),
            )
        )
    return rows


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
