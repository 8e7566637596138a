"""What a search over a run's settings tries, how often, and by which readings it is judged."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from steerheal.bounds import Count, Label, PositiveFraction, Rank
from steerheal.config.base import MOST_LISTED, Settings
from steerheal.config.comparing import CompareSettings
from steerheal.tables import METHODS, OBJECTIVES

Listed = Field(min_length=1, max_length=MOST_LISTED)
TEXTS, TOKENS = 24, 24
"""Training prompts that the base answers for a Fisher cosine, and its longest answer."""


class TuneSettings(Settings):
    """A search: every trial is one choice of each."""

    trials: Annotated[Count, Field(le=1_000)] = 16
    """Trials, those of a search that goes on included; more can be asked for later."""
    startup: Count = 6
    """Trials that are drawn at random, before the others are drawn where the best ones lie."""
    bands: Annotated[tuple[Label, ...], Listed] = ("0.2-0.4", "0.3-0.5", "0.4-0.6", "0.5-0.7")
    """Blocks that are steered, as fractions of depth."""
    methods: Annotated[tuple[Annotated[str, METHODS], ...], Listed] = (
        "mean_difference",
        "pca",
        "trait_per_kl",
    )
    """How the poles' states become a direction."""
    shares: tuple[PositiveFraction, PositiveFraction] = (0.6, 0.95)
    """The dose: ends of the share of the base's coherent answers that is left at the knee."""
    objectives: Annotated[tuple[Annotated[str, OBJECTIVES], ...], Listed] = ("sft", "distill")
    """What the heal fits."""
    ranks: Annotated[tuple[Rank, ...], Listed] = (4, 8, 16, 32)
    """Ranks of the adapter."""
    passes: tuple[Count, Count] = (1, 4)
    """Ends of the heal's epochs."""
    trait: Label = CompareSettings().trait
    """The reading whose change is to be large."""
    damage: Label = CompareSettings().damage
    """The reading whose change for the worse is to be small."""

    @model_validator(mode="after")
    def _ends_rise(self) -> Self:
        for name in ("shares", "passes"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must rise: {low} is above {high}")
        return self
