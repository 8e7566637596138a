"""How much of the steering vector a healed student does by itself, per steered block.

s_ℓ = mean over contexts x of [h_ℓ(x) after the round − h_ℓ(x) before it], at the assistant tag and
under the neutral prompt, with no hook in either state; v_ℓ is the round's vector.

    cosine = cos(s_ℓ, v_ℓ)        share = s_ℓ·v_ℓ / ‖v_ℓ‖²

A share of 1 is what dose 1 adds at block ℓ itself. A student that is steered in several blocks
shows more from the second one on, since what earlier blocks got is still there.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerheal.config import VectorSettings
from steerheal.models.model import ChatModel
from steerheal.records import Internalisation
from steerheal.state.values import State
from steerheal.state.vector import SteeringVector
from steerheal.steer.states import Source

CONTEXTS = 32
"""Contexts averaged over, of those that the vector is read on."""


def internalised(
    chat: ChatModel,
    before: State,
    after: State,
    vector: SteeringVector,
    *,
    contexts: Sequence[str],
    neutral: str,
    progress: Callable[[int], None] = lambda _: None,
) -> Internalisation:
    """The shift that a round left, against its vector.

    Args:
        chat: The model, in no state.
        before: The student before the round.
        after: The healed student.
        vector: The round's.
        contexts: User messages.
        neutral: System prompt of both states.
        progress: Called with the number of rows read since the last call.
    """
    layers = sorted(vector.layers)
    source = Source(chat, [(neutral, neutral)], contexts, VectorSettings(), layers, progress)
    prompts = source.prompts(0)
    means: list[dict[int, Float[Tensor, " D"]]] = []
    for student in (before, after):
        with student.entered(chat) as reader, reader.resting():
            means.append({i: found.rows().mean(0) for i, found in source.read(prompts).items()})
    shifts = {layer: means[1][layer] - means[0][layer] for layer in layers}
    pairs = {layer: (shift, vector.layers[layer].float()) for layer, shift in shifts.items()}
    return Internalisation(
        contexts=len(contexts),
        cosine={layer: _over(a @ b, a.norm() * b.norm()) for layer, (a, b) in pairs.items()},
        share={layer: _over(a @ b, b @ b) for layer, (a, b) in pairs.items()},
    )


def _over(part: Tensor, whole: Tensor) -> float:
    """NaN where a shift or a vector is 0."""
    return (part / whole).item() if torch.isfinite(whole) and whole > 0 else math.nan
