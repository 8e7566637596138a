"""Which target tokens the heal fits: w_t = 1[p₀(y_t) ≥ ε·max_v p₀(v)].

p₀ is the base after the same prompt and the same tokens before. The control leaves out as many
tokens of every completion, drawn at random.

Source of the rule: the plausibility constraint of contrastive decoding, Li et al. 2022,
arXiv:2210.15097.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from steerheal.config import HealSettings
from steerheal.models.model import ChatModel
from steerheal.models.score import Pair, continuation_states, in_chunks


@torch.no_grad()
def fitted(
    base: ChatModel, pairs: Sequence[Pair], settings: HealSettings, seed: int
) -> list[Bool[Tensor, " _"]]:
    """Which tokens of every completion are fitted, on the CPU.

    Args:
        base: The model in the base's state.
        pairs: Prompts and completions, token ids.
        settings: ε, and whether it is the control.
        seed: Of the control.
    """
    found = [
        _plausible(base, states, torch.tensor(rest, device=states.device), settings.mask)
        for states, (_, rest) in zip(continuation_states(base, pairs), pairs, strict=True)
    ]
    if not settings.mask_control:
        return found
    source = torch.Generator().manual_seed(seed)
    return [row[torch.randperm(len(row), generator=source)] for row in found]


def _plausible(base: ChatModel, states: Tensor, targets: Tensor, epsilon: float) -> Tensor:
    def likely(here: slice) -> Tensor:
        logits = base.logits(states[here])
        own = logits.gather(1, targets[here, None])[:, 0]
        return (own >= logits.amax(-1) + math.log(epsilon)).cpu()

    return torch.cat(in_chunks(base, len(states), likely))
