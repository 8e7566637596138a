"""Contrastive prompt decoding: logits of base + β·(under s⁺ − under s⁻), with no training.

Source: contrastive decoding, Li et al. 2022, arXiv:2210.15097, with two prompts in place of two
models.
"""

from steerheal.pipeline.arms.kind import Arm, Bench, Kind
from steerheal.state.formulas import contrast
from steerheal.state.values import State, base


def make(of: Bench) -> Arm:
    """The base moved by what the two poles differ by, at a strength β."""
    persona = of.stages.persona
    up = base().prompted(persona.positive, "positive pole")
    down = base().prompted(persona.negative, "negative pole")

    def at(strength: float) -> State:
        return contrast(base(), up, down, strength)

    return Arm(at)


KIND = Kind(make, along="strength", family="prompt", mixed=True)
