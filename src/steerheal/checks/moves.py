"""What a dose moved and what it cost: the units of check 1. Pure functions of a sweep's points."""

import math

from steerheal.checks.rules import coherent, known, named, over
from steerheal.measure.stats import quantile
from steerheal.personas import Axis
from steerheal.records import DosePoint, Reading, Record, Summary, Sweep

LOGODDS = "persona log-odds"
UNITS = {LOGODDS: "nats/token"}


class Move(Record):
    """One dose: what it moved from the round's start, and at what price."""

    dose: float
    coherence: float
    coherence_high: float = math.nan
    """The upper end of its interval, where it is a share of few answers."""
    perplexity: float
    """Over the base's."""
    kl: float
    trait: dict[str, Reading]
    """The target foundation (nats) and the persona's log-odds (nats per token), by name."""
    off: dict[str, Reading]
    """The off-target foundations, nats."""
    even: float = math.nan
    """Share of what the dose does to the text that the opposite dose does as well."""

    @property
    def at_best(self) -> float:
        """Coherence as far as it is not shown to be lower."""
        return self.coherence_high if known(self.coherence_high) else self.coherence

    @property
    def coherent(self) -> bool:
        """Whether the model still speaks and answers at this dose."""
        return coherent(self.at_best, self.perplexity)

    @property
    def said(self) -> str:
        """What the trait's readings did."""
        return named(self.trait, UNITS)

    @property
    def price(self) -> str:
        """What it cost."""
        parts = {
            "coherence": self.coherence,
            "perplexity ×": self.perplexity,
            "KL": self.kl,
            "even share": self.even,
        }
        shown = [f"{name} {value:.3g}" for name, value in parts.items() if known(value)]
        return ", ".join(shown).replace("× ", "×") or "price unknown"

    @property
    def leans(self) -> bool:
        """Whether a reading lies more than one standard error from 0."""
        return any(
            abs(item.value) * quantile(item.n - 1 if item.n > 1 else math.inf)
            > (item.high - item.low) / 2
            for item in self.trait.values()
        )


def sweep_of(steered: Summary, base: Summary, dose: float) -> Sweep:
    """The one steered reading as a sweep, for a run that read no others."""
    return Sweep(points=(DosePoint.of(steered, dose),), base_perplexity=base.perplexity)


def move_of(point: DosePoint, base_perplexity: float, axis: Axis, start: Summary) -> Move:
    """A dose's change from the round's start.

    Args:
        point: The dose against the base.
        base_perplexity: Of the base's own free answers.
        axis: Target and off-target foundations.
        start: The student at the round's start against the base.
    """

    def nats(name: str) -> Reading:
        return _since(point.summary.delta_nats.get(name), start.delta_nats.get(name))

    return Move(
        dose=point.dose,
        coherence=point.summary.coherence,
        coherence_high=point.summary.coherence_high,
        perplexity=over(point.summary.perplexity, base_perplexity),
        kl=point.summary.kl.value,
        even=point.even.value,
        trait={
            axis.foundation: nats(axis.foundation),
            LOGODDS: _since(point.summary.free_gain, start.free_gain),
        },
        off={name: nats(name) for name in axis.off_target},
    )


def _since(reading: Reading | None, start: Reading | None) -> Reading:
    """The reading less what the student started with."""
    if reading is None or start is None:
        return Reading.unknown("not read")
    by = start.value
    return reading.model_copy(
        update={name: getattr(reading, name) - by for name in ("value", "low", "high")}
    )
