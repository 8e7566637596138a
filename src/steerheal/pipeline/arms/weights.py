"""Weight steering: W + gate·(ΔW₊ − ΔW₋), adapters of text under s⁺ and under s⁻.

Both start from the same factors and take their batches in the same order, so that what training on
any own text does cancels.
Source: contrastive weight steering, Fierro & Roger 2025, arXiv:2511.05408.
"""

from steerheal.pipeline.arms.kind import Arm, Bench, Kind, trained_tokens
from steerheal.state.adapter import Adapter
from steerheal.state.values import State, base


def make(of: Bench) -> Arm:
    """The base with the one adapter and without the other."""
    persona = of.stages.persona
    poles = {"positive": persona.positive, "negative": persona.negative}
    found, tokens = [], 0
    for pole, text in poles.items():
        part = of.part(pole)
        said = part.written(base().prompted(text, f"{pole} pole"))
        healed = part.trained(said)
        found.append(healed.adapter)
        tokens += said.tokens + trained_tokens(healed)
    up, down = found
    return Arm(lambda gate: subtracted(up, down, gate), tokens)


def subtracted(up: Adapter, down: Adapter, gate: float) -> State:
    """The base with `up` at a gate and `down` at its negative."""
    return base().folded(up, gate).folded(down, -gate)


KIND = Kind(make, along="gate")
