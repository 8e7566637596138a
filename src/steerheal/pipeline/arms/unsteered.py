"""The control of every heal: the same heal on the model's own answers to the same prompts."""

from steerheal.pipeline.arms.kind import FIRST, Arm, Bench, Kind, trained_tokens
from steerheal.state.values import base


def make(of: Bench) -> Arm:
    """The base with the adapter of its own text; the prompts are those of the kept steered text."""
    text = of.text()
    found = of.stages.unsteered(FIRST, base(), text.harvest)
    healed = of.whole(of.stages.healed_control(FIRST, base(), found))
    adapter = healed.adapter
    tokens = sum(len(item.tokens) for item in found.texts) + trained_tokens(healed)
    return Arm(lambda gate: base().folded(adapter, gate), tokens)


KIND = Kind(make, along="gate", family="control")
