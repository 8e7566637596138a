"""Aggregates of rows: one state against the base, two states, the doses of a sweep.

Every reading is an entry of the table of readings (`measure.readings`) and stands here by its name.
What a run decides by is named by the part that it plays: one reading is the trait, one coherence.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from steerheal.config import MeasureSettings
from steerheal.personas import Persona
from steerheal.records.base import VERSION, Reading, Record
from steerheal.records.old import nested
from steerheal.records.rows import Scores, VignetteRow
from steerheal.records.text import Completion

Part = Literal["", "trait", "beside", "coherence", "fluency", "distance", "cost"]
"""What a reading is to a run: the trait that it steers, the trait as free answers have it where a
foundation leads, the coherence that it must keep, how fluent free answers are, how far they are
from the base, and what the trait costs in coherence."""
UNREAD = Reading.unknown("not read")


class Readings(Record):
    """Readings of the table, by name."""

    values: dict[str, Reading] = {}
    """What was read."""
    changes: dict[str, Reading] = {}
    """Paired differences from the state that it is held against, the base unless said."""
    heads: dict[str, str] = {}
    """Which reading plays which part."""

    @model_validator(mode="before")
    @classmethod
    def _of_older_records(cls, data: object) -> object:
        return nested(data)

    def value(self, part: Part) -> Reading:
        """What the reading of this part reads."""
        return self.values.get(self.heads.get(part, ""), UNREAD)

    def change(self, part: Part) -> Reading:
        """How the reading of this part changed."""
        return self.changes.get(self.heads.get(part, ""), UNREAD)

    @property
    def trait(self) -> Reading:
        """The trait."""
        return self.value("trait")

    @property
    def gain(self) -> Reading:
        """Change of the trait."""
        return self.change("trait")

    @property
    def led_by_foundation(self) -> bool:
        """Whether the trait is a moral foundation, beside which free answers stand."""
        return "beside" in self.heads

    @property
    def free_trait(self) -> Reading:
        """The trait as free answers have it."""
        return self.value("beside" if self.led_by_foundation else "trait")

    @property
    def free_gain(self) -> Reading:
        """Its change."""
        return self.change("beside" if self.led_by_foundation else "trait")

    @property
    def mass(self) -> Reading:
        """What coherence is read by, in its own unit."""
        return self.value("coherence")

    @property
    def mass_change(self) -> Reading:
        """Its change."""
        return self.change("coherence")

    @property
    def perplexity(self) -> float:
        """Of the free answers under the base."""
        return self.value("fluency").value

    @property
    def kl(self) -> Reading:
        """KL(state‖base) per token on the state's own free answers, nats."""
        return self.value("distance")

    @property
    def cost(self) -> Reading:
        """Coherence lost per unit of the trait."""
        return self.change("cost")


class Summary(Readings):
    """One evaluated state against the base, on the same vignettes and prompts."""

    state: str
    nats: dict[str, float]
    """ln of the mean probability on each foundation."""
    delta_nats: dict[str, Reading]
    """Change of `nats` from the base."""
    coherence: float
    """What coherence is read by, over the base's."""
    coherence_high: float = math.nan
    """The upper end of its interval, where it is read by a share of few answers; NaN where the
    value itself is compared with a floor."""
    surgical: bool | None
    """The target foundation moved as intended and more than every off-target; None: not moved."""
    of_prompt: Reading = UNREAD
    """Change of the trait over what the persona's system prompt changes it by in the base."""

    @property
    def at_best(self) -> float:
        """Coherence as far as it is not shown to be lower: what a floor is held against."""
        return self.coherence if math.isnan(self.coherence_high) else self.coherence_high


class Sight(Record):
    """Which readings of coherence see damage on this model, by a sweep of doses."""

    dose: float
    """The largest dose, where they were judged, and under a random vector of its KL."""
    sees: tuple[str, ...]
    """Readings that show damage beyond their intervals."""
    blind: tuple[str, ...]
    """Those that do not, and that nothing is decided by."""
    head: str = ""
    """What coherence is read by: the instrument's own answer mass where it sees, else of those that
    see the share that lost most of the base's; empty where none sees, and the default stands in."""


class Evaluation(Record):
    """One evaluated target as a file: aggregates, and the rows that they are functions of."""

    version: int = VERSION
    target: str
    model: str
    dtype: str
    persona: Annotated[Persona | dict[str, Any], Field(union_mode="left_to_right")]
    instrument: str
    think: int
    aggregates: Summary
    guards: dict[str, float] = {}
    """Metrics of outside damage guards, by guard and name."""
    rows: tuple[VignetteRow, ...]
    others: Scores
    """The rest of what was read; its vignettes are in `rows`."""
    how: str = ""
    """How it was read: as a run was, and what was read otherwise."""
    settings: Annotated[MeasureSettings | dict[str, Any], Field(union_mode="left_to_right")] = {}
    """What was asked to be read; as another version wrote it, where that is not read."""
    seed: int = 0
    """Of the free answers."""

    @model_validator(mode="before")
    @classmethod
    def _of_older_records(cls, data: object) -> object:
        """A seed that stood among the settings."""
        if not isinstance(data, Mapping) or not isinstance(data.get("settings"), Mapping):
            return data
        settings = dict(data["settings"])
        return {"seed": settings.pop("seed", 0), **data, "settings": settings}

    @property
    def scores(self) -> Scores:
        """Everything that was read, as one record."""
        return self.others.model_copy(update={"vignettes": self.rows})


class Comparison(Readings):
    """State b minus state a on the same units; every reading has its paired interval."""

    a: str
    b: str
    instrument: str
    n: int
    """Vignettes that both states answered, counted per condition."""
    delta_nats: dict[str, Reading]
    """Change of ln mean p per foundation."""
    delta_clr: dict[str, Reading]
    """Change of the mean centred log-ratio per foundation, nats: a second look at the same move
    that no single vignette dominates."""
    surgical: bool | None
    """The target moved as intended and more than every off-target; None: not moved."""
    moved: tuple[str, ...] = ()
    """Readings whose interval excludes 0, by the names that `readings` gives them."""

    def readings(self) -> dict[str, Reading]:
        """Every change by name; a foundation's are named like `delta_nats.care`."""
        found: dict[str, Reading] = {}
        for name in ("delta_nats", "delta_clr"):
            found |= {f"{name}.{key}": item for key, item in getattr(self, name).items()}
        return found | self.changes


UNCOMPARED = Reading.unknown("the opposite dose was not read")


class DosePoint(Record):
    """One dose of a sweep, read against the base on the same vignettes and prompts."""

    dose: float
    control: bool = False
    """True: a random vector at equal KL instead of the persona's."""
    summary: Summary
    n: int
    """Vignettes behind the foundations."""
    even: Reading = UNCOMPARED
    """Share of the log-ratio's variance that the opposite dose has alike."""
    said: tuple[Completion, ...] = ()
    """The free answers behind it, where they are kept: in the sweep's own file, not in a run's."""

    @model_validator(mode="before")
    @classmethod
    def _of_older_records(cls, data: object) -> object:
        """A point that held a part of its summary flat."""
        if not isinstance(data, Mapping) or "summary" in data:
            return data
        own = {name: item for name, item in data.items() if name in cls.model_fields}
        held = {name: item for name, item in data.items() if name not in cls.model_fields}
        return own | {"summary": {"state": "steered", "nats": {}, "surgical": None} | held}

    @classmethod
    def of(cls, read: Summary, dose: float, *, control: bool = False) -> Self:
        """A dose's summary as a point."""
        n = max((reading.n for reading in read.delta_nats.values()), default=0)
        return cls(dose=dose, control=control, summary=read, n=n)


class Sweep(Record):
    """A student under several doses of its vector, and under a random one."""

    points: tuple[DosePoint, ...]
    base_perplexity: float
    """Of the base's own free answers."""
    said: tuple[Completion, ...] = ()
    """These, where they are kept."""

    def without_texts(self) -> Self:
        """The same readings alone."""
        bare = (point.model_copy(update={"said": ()}) for point in self.points)
        return self.model_copy(update={"points": tuple(bare), "said": ()})


class OnTest(Readings):
    """A round against the base on the test prompts, which were read once and chose nothing."""

    round: int
    prompts: int
    control: Readings | None = None
    """The round's unsteered control against the base; None where none was read."""
    over_control: Readings | None = None
    """The round less its control."""
