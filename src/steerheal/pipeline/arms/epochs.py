"""One text trained on for more and more epochs, a heal and a schedule of its own for each number.

Does training less do what a lower gate does, and from where on is a heal overfit?
"""

from dataclasses import replace
from functools import cache

from steerheal.config import HealSettings
from steerheal.config.validation import validated
from steerheal.heal.train import Healed
from steerheal.pipeline.arms.kind import Arm, Bench, Kind, Written, trained_tokens
from steerheal.state.values import State, base


def make(of: Bench) -> Arm:
    """The base with the adapter of so many epochs; what it takes is told of the most of them."""
    text, gate = of.text(), of.stages.config.gate

    @cache
    def after(epochs: float) -> Healed:
        return trained_for(of, text, int(epochs))

    def at(epochs: float) -> State:
        return base().folded(after(epochs).adapter, gate) if epochs else base()

    return Arm(at, text.tokens + trained_tokens(after(max(of.points))))


def trained_for(of: Bench, text: Written, epochs: int) -> Healed:
    """The heal of this text that takes so many epochs."""
    part = of.part(f"epochs-{epochs}")
    heal = of_epochs(part.stages.config.heal, epochs)
    config = part.stages.config.model_copy(update={"heal": heal})
    return replace(part, stages=replace(part.stages, config=config)).trained(text)


def of_epochs(heal: HealSettings, epochs: int) -> HealSettings:
    """The heal's settings with so many epochs.

    Raises:
        UserError: its objective does not take as many.
    """
    values = heal.model_dump() | {"epochs": epochs}
    return validated(HealSettings, values, source=f"{epochs} epochs")


KIND = Kind(make, along="epochs")
