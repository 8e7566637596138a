"""Rounds of a run without their readings: its teacher's text, filtered, healed, at a gate."""

from steerheal.pipeline.arms.kind import Arm, Bench, Kind, trained_tokens
from steerheal.state.values import State, base


def make(of: Bench) -> Arm:
    """The base with the adapters of so many rounds as the arm's settings have, each at the gate."""
    own, adapters, tokens = of.stages.config.gate, [], 0

    def at(gate: float) -> State:
        state: State = base()
        for adapter in adapters:
            state = state.folded(adapter, own * gate)
        return state

    for number in range(of.stages.config.rounds):
        text = of.text(at(1.0), number)
        healed = of.trained(text)
        adapters.append(healed.adapter)
        tokens += text.tokens + trained_tokens(healed)
    return Arm(at, tokens)


KIND = Kind(make, along="gate")
