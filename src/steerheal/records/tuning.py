"""A search over settings: every trial with its readings, what was given up and why, the front."""

from typing import Any, Literal

from steerheal.config import RunConfig
from steerheal.config.tuning import TuneSettings
from steerheal.personas import Persona
from steerheal.records.base import Reading, Record
from steerheal.records.fisher import RankRow

TUNE_VERSION = 1


class Trial(Record):
    """One choice of settings."""

    number: int
    """From 0."""
    chosen: dict[str, Any]
    """What was chosen, by its name in a run's settings."""
    reason: str = ""
    """Why it was given up; empty where its round was read to the end."""
    trait: Reading | None = None
    """Change from the base."""
    damage: Reading | None = None
    """Change from the base; more is worse."""

    @property
    def point(self) -> tuple[float, float] | None:
        """Both objectives, the larger the better; None of a trial that was given up."""
        if self.trait is None or self.damage is None:
            return None
        return self.trait.value, -self.damage.value


class TuneRecord(Record):
    """A whole search."""

    version: int = TUNE_VERSION
    status: Literal["running", "finished"]
    name: str
    command: str
    settings: TuneSettings
    config: RunConfig
    """What every trial's choice is put into."""
    persona: Persona
    environment: dict[str, str]
    directions: tuple[RankRow, ...] = ()
    """Every method on every band, before any text was steered."""
    absent: dict[str, str] = {}
    """Why a method gives no direction here."""
    trials: tuple[Trial, ...] = ()
    front: tuple[int, ...] = ()
    """Trials that no other beats on both, by number."""
    knee: int | None = None
    """Of the front, the trial from which on more of one costs most of the other; its end of least
    damage, where it does not bend."""
