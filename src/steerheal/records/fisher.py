"""How much of what a state changes serves the trait, and directions ranked by it."""

from typing import Annotated, Any

from pydantic import Field

from steerheal.personas import Persona
from steerheal.records.base import Reading, Record

RANK_VERSION = 1


class Fisher(Record):
    """A state's change of the base, beside the change that would serve the trait best."""

    kl: float
    """KL(state‖base), mean over positions that the base wrote, nats per token."""
    cosine: Reading
    """With the reward of the training paraphrases, which a vector may be made of."""
    held_out: Reading
    """With the reward of the held-out ones, which make no vector."""
    per_root_kl: Reading
    """Held-out trait gained per √KL, at this KL."""
    optimum: Reading
    """What per_root_kl is at most for a small change: where the cosine is 1."""


class RankRow(Record):
    """One direction at a small dose."""

    method: str
    contrast: str
    wordings: str
    band: str
    """As it was asked for, such as 0.4-0.6."""
    blocks: tuple[int, ...]
    dose: float
    read: Fisher

    def options(self) -> list[str]:
        """What makes the direction, as options of a run."""
        low, _, high = self.band.partition("-")
        made = ["--vector.method", self.method, "--vector.contrast", self.contrast]
        return [*made, "--vector.wordings", self.wordings, "--vector.band", low, high]


class RankRecord(Record):
    """A whole ranking."""

    version: int = RANK_VERSION
    model: str
    fingerprint: str
    persona: Annotated[Persona | dict[str, Any], Field(union_mode="left_to_right")]
    settings: dict[str, Any]
    """The command's options that decide the ranking."""
    rows: tuple[RankRow, ...]
    """The largest held-out cosine first; unknown ones last."""
    words: str
    """The line that runs the first of them, or why it is not advised."""
