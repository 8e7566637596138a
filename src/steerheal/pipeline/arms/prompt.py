"""A system prompt: p(· | s), with the weights as they are."""

from steerheal.pipeline.arms.kind import Arm, Bench, Kind
from steerheal.state.values import base


def make(of: Bench) -> Arm:
    """The base under the arm's text, or under the persona's positive pole."""
    text = of.arm.system or of.stages.persona.positive
    return Arm(lambda _: base().prompted(text, of.arm.name))


KIND = Kind(make, family="prompt")
