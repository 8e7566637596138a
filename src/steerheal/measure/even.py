"""The even share: how much of what a dose does to the text, the opposite dose does as well.

At positions that the base p₀ wrote, with log-ratios ℓ± = ln p± − ln p₀ of the state at dose ±d and
expectations under p₀:
    odd  o = ½(ℓ₊ − ℓ₋)        turns with the vector's sign: a trait can only be here
    even e = ½(ℓ₊ + ℓ₋)        stays: what any push of that size breaks
    share = ΣVar₀[e] / Σ(Var₀[e] + Var₀[o]),    where Var e + Var o = ½(Var ℓ₊ + Var ℓ₋)
Intervals are the jackknife's over answers.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steerheal.measure import free
from steerheal.measure.stats import Floats, jackknife
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states, in_chunks
from steerheal.records import Completion, Reading
from steerheal.state.values import State

Side = tuple[ChatModel, Float[Tensor, "N D"]]
"""Who makes logits of the final states, and these."""
UNWRITTEN = "no answer has a token to compare at"


@torch.no_grad()
def even_shares(
    chat: ChatModel,
    student: State,
    steered: State,
    doses: Sequence[float],
    texts: Sequence[Completion],
) -> list[Reading]:
    """The share at every dose, in the order given; 0 where only the vector's sign matters.

    The student stands for the base p₀: in a later round it is what the vector is added to.

    Args:
        chat: The model, in no state.
        student: What is steered.
        steered: The same under the vector, at any dose.
        doses: Above 0.
        texts: What the student wrote; empty ones are left out.
    """
    said = [text for text in texts if text.tokens]
    if not said:
        return [Reading.unknown(UNWRITTEN) for _ in doses]
    own = _read(chat, student, said)
    owner = torch.repeat_interleave(torch.tensor([len(text.tokens) for text in said]))
    found = []
    for dose in doses:
        sides = [_read(chat, steered.at_dose(sign * dose), said) for sign in (1.0, -1.0)]
        states = (own, *sides)

        def both(here: slice, states: Sequence[Side] = states) -> Float[Tensor, "N 2"]:
            rows = torch.arange(here.start, here.stop)
            logs = (reader.logits(there[rows]).log_softmax(-1) for reader, there in states)
            return variances(*logs).cpu().double()

        sums = torch.zeros(len(said), 2, dtype=torch.float64)
        sums.index_add_(0, owner, torch.cat(in_chunks(chat, len(owner), both)))
        found.append(jackknife(sums.numpy(), _share))
    return found


def variances(
    log_p: Float[Tensor, "N V"], up: Float[Tensor, "N V"], down: Float[Tensor, "N V"]
) -> Float[Tensor, "N 2"]:
    """Variance under p₀ of the even and of the odd part at every position; log-probabilities in."""
    p = log_p.exp()
    parts = []
    for part in ((up + down) / 2 - log_p, (up - down) / 2):
        # A token that the base cannot say has no part in its variance, whatever the others say.
        known = part.masked_fill(p == 0, 0)
        parts.append((p * known.square()).sum(-1) - (p * known).sum(-1).square())
    return torch.stack(parts, dim=-1)


def _read(chat: ChatModel, state: State, said: Sequence[Completion]) -> Side:
    with state.entered(chat) as reader:
        return reader, torch.cat(continuation_states(reader, free.answer_pairs(reader, said)))


def _share(sums: Floats) -> Floats:
    """Of sums (answers, even and odd); NaN where nothing changed."""
    even, odd = np.moveaxis(sums.sum(axis=1), -1, 0)
    with np.errstate(invalid="ignore"):
        return even / (even + odd)
