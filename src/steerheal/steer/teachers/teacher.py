"""What a teacher is: a state made of a round's student, its vector and the persona."""

from collections.abc import Callable
from dataclasses import dataclass

from steerheal.personas import Persona
from steerheal.state.values import State
from steerheal.state.vector import SteeringVector


@dataclass(frozen=True)
class Materials:
    """What a teacher may be made of."""

    student: State
    """The student before the round."""
    vector: SteeringVector
    """The round's."""
    persona: Persona
    epsilon: float
    """Share of the base's likeliest token's probability that a plausible token has."""


@dataclass(frozen=True)
class Teacher:
    """A way to make the state that writes."""

    make: Callable[[Materials], State]
    """A vector in what it makes is at dose 1."""
    dosed: bool = True
    """Whether there is a vector in it, whose dose can be walked."""
    mixed: bool = False
    """Whether its logits are made of several forwards."""
