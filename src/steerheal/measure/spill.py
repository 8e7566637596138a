"""Spill: how far a state is from the base where it should be the base, on unrelated prompts.

    spill = mean over positions of KL(state‖base), on text that the base wrote to mundane prompts
    left  = the same of KL(base‖state): what the base would say and the state would not
A vector acts everywhere; what is distilled from it need not.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerheal.config import SamplingSettings
from steerheal.measure import free
from steerheal.models.generate import Draw, generate
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states, kl_between
from steerheal.records import Completion
from steerheal.state.values import State


def base_texts(
    chat: ChatModel,
    prompts: Sequence[str],
    sampling: SamplingSettings,
    *,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Completion]:
    """What the base writes to the prompts: the text that every state is read on.

    Args:
        chat: The model, in no state.
        prompts: Unrelated to any trait.
        sampling: How, and how long.
        seed: First draw's seed; every prompt has its own.
        progress: Called with the number of texts written.
    """
    draws = [Draw(prompt, seed=seed * 1_000_003 + i) for i, prompt in enumerate(prompts)]
    return generate(chat, draws, sampling, progress=progress)


def spill(chat: ChatModel, state: State, texts: Sequence[Completion]) -> list[float]:
    """KL(state‖base) of every text in nats per token; arguments as `apart`."""
    return [there for there, _ in apart(chat, state, texts)]


@torch.no_grad()
def apart(chat: ChatModel, state: State, texts: Sequence[Completion]) -> list[tuple[float, float]]:
    """KL(state‖base) and KL(base‖state) of every text, nats per token; empty ones are left out.

    Args:
        chat: The model, in no state.
        state: What is read.
        texts: What the base wrote.
    """
    said = [text for text in texts if text.tokens]
    own = continuation_states(chat, free.answer_pairs(chat, said))
    with state.entered(chat) as reader:
        theirs: list[Float[Tensor, "_ W"]] = continuation_states(
            reader, free.answer_pairs(reader, said)
        )
        return [
            (
                kl_between(chat, there, here, reader).mean().item(),
                kl_between(reader, here, there, chat).mean().item(),
            )
            for there, here in zip(theirs, own, strict=True)
        ]
