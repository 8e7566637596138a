"""The trait as an expectation over every next token, under many wordings of the poles.

For an answer y that a state p wrote, and pole texts s⁺ and s⁻ that the base p₀ reads:
    trait(y) = mean over positions t of Σ_v p(v|y_<t) [ln p₀(v|s⁺,y_<t) − ln p₀(v|s⁻,y_<t)]
The sum over the vocabulary replaces the one token that was drawn (Rao-Blackwell): the same mean,
and less noise per answer.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerheal.measure import free
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states, expected, in_chunks
from steerheal.state.values import base, entered

Poles = tuple[str, str]
"""A positive and a negative system prompt."""


@torch.no_grad()
def expected_logodds(
    chat: ChatModel, answers: free.Answers, pairs: Sequence[Poles]
) -> Float[Tensor, "A P"]:
    """Nats per token of every answer under every pair, on the CPU; NaN without tokens.

    Args:
        chat: The base, in no state.
        answers: What a state wrote, with what its logits are made of.
        pairs: Wordings of the poles.
    """
    said = [i for i, item in enumerate(answers.completions) if item.tokens]
    found = torch.full((len(answers.completions), len(pairs)), torch.nan)
    if not said:
        return found
    texts = [answers.completions[i] for i in said]
    sizes = [len(text.tokens) for text in texts]
    own = torch.cat([answers.states[i] for i in said])
    head = (answers.writer or chat).logits
    for column, pair in enumerate(pairs):
        poles = [base().prompted(text) for text in pair]
        with entered(chat, poles) as reader:
            read = [row for pole in (0, 1) for row in free.answer_pairs(reader, texts, pole)]
            states = continuation_states(reader, read)
        up, down = torch.cat(states[: len(texts)]), torch.cat(states[len(texts) :])

        def gained(here: slice, up: Tensor = up, down: Tensor = down) -> Float[Tensor, " N"]:
            return _expected(head(own[here].to(up)), chat.logits(up[here]), chat.logits(down[here]))

        per_answer = torch.cat(in_chunks(chat, len(own), gained)).cpu().split(sizes)
        found[said, column] = torch.stack([one.mean() for one in per_answer])
    return found


def _expected(
    own: Float[Tensor, "N V"], up: Float[Tensor, "N V"], down: Float[Tensor, "N V"]
) -> Float[Tensor, " N"]:
    return expected(own.softmax(-1), up.log_softmax(-1) - down.log_softmax(-1))
