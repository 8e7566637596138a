"""What the unsteered base says of completions, for the filter."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerheal.measure.free import answer_pairs
from steerheal.models.load import ChatModel
from steerheal.models.score import continuation_states, readings, token_logprobs
from steerheal.records import Completion
from steerheal.steer.persona import Persona
from steerheal.steer.signs import Seen


def seen_by(
    base: ChatModel,
    completions: Sequence[Completion],
    persona: Persona,
    states: Sequence[Float[Tensor, "_ D"]] = (),
) -> list[Seen]:
    """The base's reading of every completion.

    Args:
        base: The model unsteered and unfolded.
        completions: What was written.
        persona: Whose poles the log-odds compare.
        states: The final hidden states that the tokens were drawn from; without them the
            divergence from the base is unknown.
    """
    pairs = answer_pairs(base, completions)
    own = continuation_states(base, pairs)
    up = token_logprobs(base, answer_pairs(base, completions, persona.positive))
    down = token_logprobs(base, answer_pairs(base, completions, persona.negative))
    found = []
    for i, completion in enumerate(completions):
        targets = torch.tensor(completion.tokens, device=base.device)
        other = states[i].to(base.device, own[i].dtype) if states else None
        read = readings(base, own[i], targets, other)
        found.append(
            Seen(
                logprobs=read.logprobs.tolist(),
                entropies=read.entropies.tolist(),
                kls=() if read.kls is None else read.kls.tolist(),
                logodds=(up[i].sum() - down[i].sum()).item() / len(completion.tokens),
            )
        )
    return found
