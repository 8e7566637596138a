"""How coherent text is at rising doses, and the dose at which it stops being so."""

from typing import Literal

from steerheal.records.base import Reading, Record


class CurvePoint(Record):
    """The text written at one dose."""

    dose: float
    """0 is the student without the vector."""
    coherent: Reading
    """Share of the answers that are coherent."""
    smooth: float
    """The same share, smoothed so that it never rises with the dose."""


class Curve(Record):
    """Coherence over doses, and the knee: where it falls to a share of the base's."""

    outcome: Literal["found", "holds", "gone"]
    """Found; or it holds at every dose, and the largest is taken; or it is gone before any dose,
    and the least is taken."""
    dose: float
    """At the knee, in multiples of the vector."""
    asked: float
    """Share of the base's own coherent answers that the knee lies at."""
    level: float
    """Share of coherent answers at the knee: `asked` times the base's."""
    base: Reading
    """The base's own share of coherent answers to the same prompts."""
    tokens: int
    """Longest answer."""
    points: tuple[CurvePoint, ...]
    """From the least dose up."""

    def words(self) -> str:
        """What was found, in one sentence."""
        of = f"{self.asked:.0%} of the base's {self.base.value:.0%}"
        last = self.points[-1]
        match self.outcome:
            case "found":
                return (
                    f"the knee is at dose {self.dose:.3g}: there {self.level:.0%} of answers are "
                    f"coherent, {of}"
                )
            case "holds":
                return (
                    f"no knee up to dose {last.dose:.3g}, which is taken: {last.smooth:.0%} of its "
                    f"answers are coherent, and the knee would lie at {self.level:.0%}, {of}"
                )
            case "gone":
                return (
                    f"without a dose only {self.points[0].smooth:.0%} of answers are coherent, "
                    f"less than {of}: the least dose, {self.dose:.3g}, is taken"
                )
