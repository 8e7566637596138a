"""What a kind of arm is: from one seed's stages to a state at every point of the arm's curve.

A stage that two arms share, such as a harvest, is found by the second one in the runs' store.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from steerheal.config.comparing import ArmSettings
from steerheal.heal.train import Healed
from steerheal.pipeline.loop import as_set
from steerheal.pipeline.stages import Stages
from steerheal.records import Harvest
from steerheal.state.values import State, base
from steerheal.state.vector import SteeringVector

Along = Literal["", "gate", "dose", "strength", "epochs"]
Family = Literal["base", "prompt", "steering", "weights", "control"]
FIRST = 0
"""Arms are made as a run's first round is."""


class Unmade(Exception):
    """Why an arm has no states at a seed; the comparison goes on without it."""


class Arm(NamedTuple):
    """An arm at one seed."""

    at: Callable[[float], State]
    """Its state at a point of its curve; at 0 it is the base. Without a curve the point is 1."""
    tokens: int = 0
    """Sampled and trained on to make it, over all passes."""


class Written(NamedTuple):
    """A teacher's text in a round."""

    student: State
    """Who is trained on it."""
    teacher: State
    harvest: Harvest
    round: int

    @property
    def tokens(self) -> int:
        """Sampled for it."""
        return sum(len(row.completion.tokens) for row in self.harvest.judged)


def trained_tokens(healed: Healed) -> int:
    """Tokens of a heal, over its epochs, and those that it sampled itself."""
    return sum(step.tokens for step in healed.log.steps) + healed.log.sampled


@dataclass(frozen=True)
class Bench:
    """What an arm is made with at one seed."""

    arm: ArmSettings
    stages: Stages
    """Under the arm's settings, in the arm's folder."""
    points: Sequence[float] = ()
    """Of its curve that are read, the least first."""

    def vector(self) -> SteeringVector:
        """The base's steering vector by the arm's settings."""
        return self.stages.vector(FIRST, base())

    def text(self, student: State | None = None, number: int = FIRST) -> Written:
        """What the arm's own teacher writes in a round, for its student or the base.

        Raises:
            Unmade: too little of it passes the filter.
        """
        student = student or base()
        teacher = as_set(self.stages)(student, self.stages.vector(number, student))
        return self.written(teacher, student, number)

    def knee(self) -> float:
        """The dose that a run with the arm's settings steers its base at."""
        found = self.stages.curve(FIRST, base().steered(self.vector(), 1.0))
        return float(self.stages.config.dose.start) if found is None else found.dose

    def written(self, teacher: State, student: State | None = None, number: int = FIRST) -> Written:
        """What a teacher writes in a round.

        Raises:
            Unmade: too little of it passes the filter.
        """
        curve = self.stages.curve(number, teacher)
        found = self.stages.harvest(number, teacher, curve)
        if found.outcome == "starved":
            kept = len(found.kept())
            drawn = len(found.judged)
            raise Unmade(f"round {number + 1} starved: {kept} of {drawn} texts passed the filter")
        return Written(student or base(), teacher, found, number)

    def trained(self, text: Written) -> Healed:
        """An adapter that is trained on it.

        Raises:
            Unmade: the heal was rejected.
        """
        return self.whole(self.stages.healed(text.round, text.student, text.teacher, text.harvest))

    @staticmethod
    def whole(healed: Healed) -> Healed:
        """The heal, if it is one.

        Raises:
            Unmade: it was rejected.
        """
        if healed.log.outcome == "rejected":
            raise Unmade(f"rejected: {healed.log.reason}")
        return healed

    def part(self, name: str) -> "Bench":
        """The same in a folder of its own, for an arm that is made of several adapters."""
        store = self.stages.store.beside(name)
        return replace(self, stages=replace(self.stages, store=store))


@dataclass(frozen=True)
class Kind:
    """A way to make an arm."""

    make: Callable[[Bench], Arm]
    along: Along = ""
    """What its curve runs along; empty for what has none."""
    family: Family = "weights"
    """Which arms look alike in figures."""
    mixed: bool = False
    """Whether its states' logits are made of several forwards."""
