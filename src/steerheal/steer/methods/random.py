"""v_ℓ = c ‖m_ℓ‖ g_ℓ, g_ℓ a random unit direction: the control at equal KL.

c is one factor for all blocks, such that at dose 1 the 95th percentile over positions of
KL(steered‖unsteered), on text that the unsteered model samples, is that of the mean difference m.
A random push of m's length moves the model less, so that equal length would be no fair control.

Source: the random-direction control of Activation Addition (Turner et al. 2023, arXiv:2308.10248),
held to equal KL instead of equal length. Foldable: a bias on the block's output.
"""

from jaxtyping import Float
from torch import Tensor

from steerheal.config import SamplingSettings
from steerheal.errors import UserError
from steerheal.models.generate import Draw, generate
from steerheal.records import Completion
from steerheal.state.values import base
from steerheal.state.vector import SteeringVector
from steerheal.steer.equal import equal_kl
from steerheal.steer.methods import mean_difference
from steerheal.steer.methods.method import Method
from steerheal.steer.states import Source

TEXTS = 16
"""Most contexts that the unsteered model answers, to measure the KL on."""
TOKENS = 32
"""Longest of those answers."""


def directions(source: Source) -> dict[int, Float[Tensor, " D"]]:
    """Random directions per block that move the model as far as the mean difference does.

    Raises:
        UserError: the mean difference moves nothing, or no factor reaches its KL.
    """
    means = mean_difference.directions(source)
    texts = sampled(source)
    like = base().steered(SteeringVector(means), 1.0)
    found = equal_kl(source.chat, base(), like, texts, seed=source.settings.seed)
    source.progress(len(texts))
    if found.vector is None:
        why = found.search.words() if found.search else f"its own p95 is {found.target:.3g} nats"
        raise UserError(
            f"No random direction is matched to the mean difference in KL: {why}. Use another "
            "--vector.seed, another persona or another --vector.band."
        )
    return found.vector.layers


def extra(contexts: int) -> int:
    """Rows beyond the poles' own: the texts, once written and once measured."""
    return 2 * min(TEXTS, contexts)


def sampled(source: Source, most: int = TEXTS) -> list[Completion]:
    """What the unsteered model answers to the first contexts: no system prompt, no truncation."""
    sampling = SamplingSettings(tokens=TOKENS, top_p=1.0)
    seed = source.settings.seed * 1_000_003
    draws = [Draw(context, seed=seed + i) for i, context in enumerate(source.contexts[:most])]
    return generate(source.chat, draws, sampling, progress=source.progress)


METHOD = Method(directions, extra=extra, joint=True)
