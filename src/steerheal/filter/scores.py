"""What the unsteered base says of completions, for the filter."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerheal.filter.features import Scored
from steerheal.measure import free
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states, readings
from steerheal.personas import Persona
from steerheal.records import Completion


def scored_by(
    base: ChatModel,
    completions: Sequence[Completion],
    persona: Persona,
    states: Sequence[Float[Tensor, "_ W"]] = (),
    *,
    writer: ChatModel | None = None,
    logodds: bool = True,
) -> list[Scored]:
    """The base's reading of every completion.

    Args:
        base: The model unsteered and unfolded.
        completions: What was written.
        persona: Whose poles the log-odds compare.
        states: What the tokens were drawn from; without it the divergence from the base is unknown.
        writer: What the door of the state that wrote them gave; the base when not given.
        logodds: Whether the poles are read as well, which costs two thirds of the time; NaN if not.
    """
    pairs = free.answer_pairs(base, completions)
    own = continuation_states(base, pairs)
    odds = [math.nan] * len(completions)
    if logodds:
        up, down = free.pole_logprobs(base, completions, persona)
        both = zip(up, down, completions, strict=True)
        odds = [free.logodds(a, b, item.tokens) for a, b, item in both]
    found = []
    for i, completion in enumerate(completions):
        targets = torch.tensor(completion.tokens, dtype=torch.long, device=base.device)
        other = states[i].to(base.device, own[i].dtype) if states else None
        read = readings(base, own[i], targets, other, writer)
        found.append(
            Scored(
                logprobs=read.logprobs.tolist(),
                entropies=read.entropies.tolist(),
                kls=() if read.kls is None else read.kls.tolist(),
                logodds=odds[i],
            )
        )
    return found
