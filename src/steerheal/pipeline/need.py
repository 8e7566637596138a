"""What a run needs, said before it is spent: memory and time, stage by stage.

Both are estimates and say so. Memory: P parameters of b bytes are P·b of weights; a float32 run
keeps a second copy of the layers that a history is folded into, writing keeps keys and values, and
a heal keeps its activations. Time: every stage is counted in tokens (`stage_work`), and some
of this model's own work on this machine gives the pace (`pace`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from steerheal.config import RunConfig
from steerheal.models.size import BYTES, GB, Size, gigabytes, weights_bytes
from steerheal.pipeline.ends import Until
from steerheal.pipeline.pace import Pace
from steerheal.pipeline.stage_work import Counted, StageWork
from steerheal.pipeline.stages import EVALUATE
from steerheal.pipeline.surroundings import size_of

PROCESS = 0.7 * GB
"""Python with torch and transformers, before any weight."""
PROMPT = 40
"""Tokens of a prompt, as far as memory goes."""
ACTIVATIONS = 20
"""Numbers kept per token, layer and hidden unit while a heal trains, in float32."""


@dataclass(frozen=True)
class Room:
    """What a run's stages hold in memory, in bytes."""

    size: Size
    dtype: str
    config: RunConfig

    def rest(self, *, folded: bool) -> float:
        """What lies there all the time: process, weights, and what a history is folded into."""
        weights = weights_bytes(self.size.held, self.dtype, self.size.packed)
        heal = self.config.heal
        twice = folded and self.dtype == "float32" and self.size.writable
        copies = self.size.reordered * BYTES["float32"]
        folds = weights * (heal.band[1] - heal.band[0]) if twice else 0.0
        return PROCESS + weights + copies + folds

    def written(self, tokens: int) -> float:
        """Keys and values of a batch that writes answers of so many tokens."""
        return self.config.sampling.rows * (PROMPT + tokens) * self.size.cached

    @property
    def trained(self) -> float:
        """Activations of an optimiser step's micro-batch."""
        heal = self.config.heal
        aside = heal.anchor_rows if heal.reads_unrelated else 0
        rows = max(math.ceil(heal.rows / heal.accumulate), aside)
        tokens = rows * (PROMPT + self.config.sampling.tokens)
        return tokens * self.size.layers * self.size.hidden * ACTIVATIONS * 4

    @property
    def peak(self) -> float:
        """The most that a run holds at once."""
        longest = max(self.config.sampling.tokens, self.config.measure.long_tokens)
        return self.rest(folded=True) + max(self.trained, self.written(longest))

    def of(self, stage: StageWork) -> float:
        """The most that a stage holds."""
        used = self.trained if stage.work.trained else 0.0
        return self.rest(folded=stage.folded) + max(used, self.written(stage.written))


class StageCost(NamedTuple):
    """A stage, and about what it costs here."""

    stage: StageWork
    seconds: float
    bytes: float


def costs(counted: Counted, pace: Pace, *, until: Until | None = None) -> list[StageCost]:
    """Every stage of a run with its cost, in the order in which it is made."""
    chat = counted.chat
    room = Room(size_of(chat), str(chat.net.dtype).removeprefix("torch."), counted.config)
    return [
        StageCost(stage, pace.seconds(stage.work), room.of(stage))
        for stage in counted.stages(until)
    ]


def memory_line(size: Size, dtype: str, config: RunConfig, free: float) -> str:
    """One line: how large the model is, about what a run of it needs, and what there is."""
    weights = weights_bytes(size.held, dtype, size.packed)
    peak = Room(size, dtype, config).peak
    packed = f", {size.packed / 1e6:,.0f} M of them in four bits" if size.packed else ""
    packed += f", {size.elsewhere / 1e6:,.0f} M of them on other devices" if size.elsewhere else ""
    short = "" if peak <= free else ". That may not do: lower heal.rows, or take another dtype"
    return (
        f"{size.parameters / 1e6:,.0f} M parameters in {dtype}{packed}: {gigabytes(weights)} of "
        f"weights; a run needs about {gigabytes(peak)}, {gigabytes(free)} are free{short}"
    )


def seconds_left(found: Sequence[StageCost], base_seconds: float) -> float:
    """About how long a run goes on after its base was read in `base_seconds`.

    What the reading took over what it was estimated to take corrects the rest.
    """
    names = [cost.stage.name for cost in found]
    place = names.index(f"{EVALUATE.name}-base")
    return base_seconds / found[place].seconds * math.fsum(c.seconds for c in found[place + 1 :])


def time_line(found: Sequence[StageCost], rounds: int, base_seconds: float) -> str:
    """One line: about how long the run goes on."""
    return (
        f"about {duration(seconds_left(found, base_seconds))} left for {rounds} "
        f"round{'s' if rounds > 1 else ''}, half or twice as long at worst: judged by the "
        f"base, which took {duration(base_seconds)}"
    )


def duration(seconds: float) -> str:
    """Seconds in the unit that reads naturally."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3_600:.1f} h"
