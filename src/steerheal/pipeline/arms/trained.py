"""One round of a run without its readings: the teacher's text, filtered, healed, at a gate."""

from steerheal.pipeline.arms.kind import Arm, Bench, Kind, trained_tokens
from steerheal.state.values import base


def make(of: Bench) -> Arm:
    """The base with the adapter of that text."""
    text = of.written(of.teacher())
    healed = of.trained(text)
    adapter = healed.adapter
    tokens = text.tokens + trained_tokens(healed)
    return Arm(lambda gate: base().folded(adapter, gate), tokens)


KIND = Kind(make, along="gate")
