"""A comparison: every arm's readings along its curve at every seed, and what sets arms apart."""

from typing import Annotated, Any, Literal

from pydantic import Field

from steerheal.config import RunConfig
from steerheal.config.comparing import ArmSettings, CompareSettings
from steerheal.personas import Persona
from steerheal.records.base import Reading, Record
from steerheal.records.fisher import Fisher
from steerheal.records.judge import Admission
from steerheal.records.readings import Summary
from steerheal.records.text import Completion

COMPARE_VERSION = 1


class ArmPoint(Record):
    """One point of an arm's curve at one seed, against the base of that seed."""

    seed: int
    at: float
    """Gate, dose, strength or epochs; 1 where the arm has no curve."""
    state: str
    """What it is, in words."""
    read: Summary
    """Every reading, and its paired change from the base."""
    eta: Reading
    """η = Δtrait/√(2·KL), per √nat; KL is that of the state to the base on its own answers."""
    fisher: Fisher | None = None
    """How much of what it changes serves the trait, on the base's answers; the curve's end has it.
    """


class Place(Record):
    """One point of an arm's curve over all seeds, with intervals over seeds and prompts."""

    at: float
    trait: Reading
    """Change from the base of what arms are compared by."""
    damage: Reading
    """Change of what they are made equal at; more is more damage."""
    kl: Reading
    """To the base, on the state's own answers, nats per token."""
    eta: Reading
    """Δtrait/√(2·KL), per √nat."""


class Spent(Record):
    """What it took to make an arm at one seed, before anything was read of it."""

    seed: int
    tokens: int
    """Sampled and trained on, over all passes."""
    seconds: float
    """Of the stages that it needs, those that it shares with other arms included."""
    memory: int = 0
    """Most bytes that one of them held; 0 where that is unknown, or nothing was made."""


class ArmRecord(Record):
    """One arm at every seed."""

    arm: ArmSettings
    says: str
    """What it is."""
    along: str
    """What its curve runs along: gate, dose, strength or epochs; empty where it has none."""
    family: str
    """Which arms look alike in figures."""
    points: tuple[ArmPoint, ...] = ()
    """Seed by seed, along the curve."""
    curve: tuple[Place, ...] = ()
    """The same over all seeds that are whole."""
    spent: tuple[Spent, ...] = ()
    unmade: dict[int, str] = {}
    """Why it has no points, by seed."""
    shown: tuple[Completion, ...] = ()
    """The persona's show prompts, answered greedily by the last point at the first seed."""


class Contrast(Record):
    """An arm less ours at an equal reading, over their whole curves."""

    arm: str
    ours: str
    at: Literal["damage", "KL"]
    """What both have alike."""
    reading: Reading
    """Trait of the arm less that of ours, with an interval over seeds and prompts."""
    p: float
    """Two-sided; NaN where there is no interval."""
    adjusted: float
    """The same by Holm's steps over all arms that are held against ours at this."""


class Persisted(Record):
    """A state's trait under a condition, less the base's under the same."""

    arm: str
    condition: str
    trait: Reading
    """Mean over seeds, with its interval."""


class CompareRecord(Record):
    """A whole comparison, readable at any moment."""

    version: int = COMPARE_VERSION
    status: Literal["running", "finished"]
    name: str
    command: str
    settings: CompareSettings
    """They stand here from the start: what is primary is written down before anything is read."""
    config: Annotated[RunConfig | dict[str, Any], Field(union_mode="left_to_right")]
    """Settings of the runs that the arms are made of."""
    persona: Annotated[Persona | dict[str, Any], Field(union_mode="left_to_right")]
    environment: dict[str, str]
    instrument: str = ""
    notes: tuple[str, ...] = ()
    arms: tuple[ArmRecord, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    compared: int = 0
    """Comparisons with ours that were made, at either equality."""
    sees: tuple[str, ...] = ()
    """Readings of coherence that show damage at the largest dose of an arm that steers."""
    blind: tuple[str, ...] = ()
    """Those that do not, so that their standing still says nothing."""
    persisted: tuple[Persisted, ...] = ()
    judge: Admission | None = None
    """Who judges the free answers once all arms are read; None where nobody does."""

    def arm(self, name: str) -> ArmRecord | None:
        """The arm of that name."""
        return next((arm for arm in self.arms if arm.arm.name == name), None)

    def contrast(self, arm: str, at: str) -> Contrast | None:
        """An arm less ours."""
        return next((c for c in self.contrasts if c.arm == arm and c.at == at), None)

    @property
    def primary(self) -> Contrast | None:
        """The comparison that was named before the run; None as long as it cannot be made."""
        return self.contrast(self.settings.against, "damage")
