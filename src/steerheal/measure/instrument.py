"""What an instrument is: what reads vignettes in every entered state, and what it needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from steerheal.config import MeasureSettings
from steerheal.measure.vignettes import Vignette
from steerheal.records import VignetteRow

if TYPE_CHECKING:
    from steerheal.models.model import ChatModel


class Read(NamedTuple):
    """What an instrument read, and what it has to say about its reading."""

    rows: list[VignetteRow]
    position_bias: tuple[float, ...] = ()
    closed_early: int = 0


Progress = Callable[[int], None]
"""Hears how many vignettes are done, over all states."""
Sweep = Callable[["ChatModel", Sequence[Vignette], MeasureSettings, Progress], list[Read]]
"""What a state's door gives, vignettes and settings to a reading per entered state."""


@dataclass(frozen=True)
class Instrument:
    """How vignettes are read."""

    sweep: Sweep
    thinks: bool = False
    """The model thinks before it answers, for as long as `measure.think` says."""
