"""One arm at one seed: made, read at every point of its curve, and shown at its end."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from steerheal.config.comparing import ArmSettings, CompareSettings, of_arm
from steerheal.errors import UserError
from steerheal.measure.persistence import Persistence
from steerheal.pipeline.arms.kind import FIRST, Bench, Kind, Unmade
from steerheal.pipeline.arms.lasting import asked_to_last, lasting
from steerheal.pipeline.arms.serving import Serving
from steerheal.pipeline.stages import BASE, Stages
from steerheal.records import Completion, Fisher, Scores
from steerheal.records.comparing import Spent
from steerheal.state.values import State, base
from steerheal.tables import ARM_KINDS

PROMPT = "prompt"
"""The kind whose text an arm may give."""


class Point(NamedTuple):
    """A point of an arm's curve, with its rows."""

    at: float
    state: State
    scores: Scores


class Read(NamedTuple):
    """An arm at a seed."""

    points: tuple[Point, ...]
    spent: Spent
    unmade: str = ""
    """Why there are no points."""
    shown: tuple[Completion, ...] = ()
    """What the last of them answers to the show prompts, where that was asked."""
    lasting: Persistence | None = None
    """The last of them under other conditions, where that was asked."""
    served: Fisher | None = None
    """How much of what the last of them changes serves the trait."""


Reads = Mapping[tuple[int, str], Read]
"""By seed and name of the arm, seed by seed."""


def kind_of(arm: ArmSettings) -> Kind:
    """How the arm is made.

    Raises:
        UserError: no such kind.
    """
    return ARM_KINDS.find(arm.kind)


def refuse_unused(arm: ArmSettings) -> None:
    """Refuses what the arm's kind does not read.

    Raises:
        UserError: points for an arm without a curve, parts of epochs, or a prompt for no prompt.
    """
    if arm.system is not None and arm.kind in ARM_KINDS.rows and arm.kind != PROMPT:
        raise UserError(f"Arm {arm.name} has a system prompt, which kind {arm.kind} does not read.")
    along = kind_of(arm).along
    if arm.points and not along:
        raise UserError(f"Arm {arm.name} has points, but kind {arm.kind} has no curve.")
    parts = [f"{one:g}" for one in arm.points if not float(one).is_integer()]
    if along == "epochs" and parts:
        raise UserError(
            f"Arm {arm.name}: its points are epochs, whole numbers, and {', '.join(parts)} is none."
        )


def says(arm: ArmSettings) -> str:
    """What the arm is, in its own words or in its kind's."""
    row = ARM_KINDS.rows.get(arm.kind)
    return arm.says or (row.says if row else arm.kind)


def places(arm: ArmSettings, settings: CompareSettings) -> list[float]:
    """The points of an arm's curve that are read, the least first."""
    usual = {
        "": (1.0,),
        "gate": settings.gates,
        "dose": settings.doses,
        "strength": settings.strengths,
        "epochs": settings.epochs,
    }
    return sorted(set(arm.points or usual[kind_of(arm).along]))


def read(
    arm: ArmSettings, settings: CompareSettings, own: Stages, serving: Serving, *, show: bool
) -> Read:
    """The arm, or why there is none.

    Args:
        arm: What is made.
        settings: The comparison's.
        own: Stages under the run's own settings at the seed, in the arm's folder; all arms are read
            with these.
        serving: Of the seed.
        show: Whether its last point answers the show prompts.
    """
    config, kind, along = own.config, kind_of(arm), places(arm, settings)
    try:
        made = kind.make(Bench(arm, replace(own, config=of_arm(config, arm)), along))
        spent = _spent(own, made.tokens)
        points = [_point(own, made.at(at), kind, at) for at in along]
    except Unmade as error:
        return Read((), _spent(own, 0), unmade=str(error))
    last = points[-1]
    said = own.shown(FIRST, role(kind, last.at), last.state).completions if show else ()
    asked = settings.persistence and arm.name in asked_to_last(settings)
    lasts = lasting(own, last.state) if asked else None
    serves = serving.of(own, last.state, last.scores)
    return Read(tuple(points), spent, shown=said, lasting=lasts, served=serves)


def role(kind: Kind, at: float) -> str:
    """What a point is called among files and stages."""
    return f"{kind.along}-{at:g}" if kind.along else "state"


def _point(own: Stages, state: State, kind: Kind, at: float) -> Point:
    if state == base():
        return Point(at, state, own.evaluated(BASE, "base", state))
    return Point(at, state, own.evaluated(FIRST, role(kind, at), state))


def _spent(own: Stages, tokens: int) -> Spent:
    """What the stages so far took, each counted once."""
    marks = own.store.marks
    held = [mark.memory for mark in marks]
    seconds = {(mark.name, mark.key): mark.seconds for mark in marks}
    return Spent(
        seed=own.config.seed,
        tokens=tokens,
        seconds=round(sum(seconds.values()), 1),
        memory=max(held, default=0) if all(held) else 0,
    )
