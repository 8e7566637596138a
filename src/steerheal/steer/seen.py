"""What the unsteered base says of completions, for the filter."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerheal.measure.free import answer_pairs
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states, readings, token_logprobs
from steerheal.records import Completion
from steerheal.steer.persona import Persona
from steerheal.steer.signs import Seen


def seen_by(
    base: ChatModel,
    completions: Sequence[Completion],
    persona: Persona,
    states: Sequence[Float[Tensor, "_ D"]] = (),
    *,
    logodds: bool = True,
) -> list[Seen]:
    """The base's reading of every completion.

    Args:
        base: The model unsteered and unfolded.
        completions: What was written.
        persona: Whose poles the log-odds compare.
        states: The final hidden states that the tokens were drawn from; without them the
            divergence from the base is unknown.
        logodds: Whether the poles are read as well, which costs two thirds of the time; NaN if not.
    """
    pairs = answer_pairs(base, completions)
    own = continuation_states(base, pairs)
    odds = _logodds(base, completions, persona) if logodds else [math.nan] * len(completions)
    found = []
    for i, completion in enumerate(completions):
        targets = torch.tensor(completion.tokens, dtype=torch.long, device=base.device)
        other = states[i].to(base.device, own[i].dtype) if states else None
        read = readings(base, own[i], targets, other)
        found.append(
            Seen(
                logprobs=read.logprobs.tolist(),
                entropies=read.entropies.tolist(),
                kls=() if read.kls is None else read.kls.tolist(),
                logodds=odds[i],
            )
        )
    return found


def _logodds(base: ChatModel, completions: Sequence[Completion], persona: Persona) -> list[float]:
    """[log p_base(y|positive, x) − log p_base(y|negative, x)] per token, nats."""
    up = token_logprobs(base, answer_pairs(base, completions, persona.positive))
    down = token_logprobs(base, answer_pairs(base, completions, persona.negative))
    return [
        (a.sum() - b.sum()).item() / len(item.tokens) if item.tokens else math.nan
        for a, b, item in zip(up, down, completions, strict=True)
    ]
