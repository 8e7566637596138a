"""What a scan of bands and doses found, as a record, and its figure: trait against coherence."""

import math
import shlex
from typing import Annotated, Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field

from steerheal.measure.readings.table import played
from steerheal.personas import Persona
from steerheal.records import DosePoint, RankRow, Reading, Readings, Record
from steerheal.report.draw import CARD, INK, RED, key, level, line, note, sheet, styled
from steerheal.report.front import front, knee
from steerheal.report.words import at

VERSION = 1
FLOOR = 0.95
"""Least share of the base's answer mass, and of its fluency by `LEAST_FLUENCY`, to be advised."""
LEAST_FLUENCY = 0.5
"""Perplexity may be at most the base's over this."""
FLAT = 0.02
"""Points above the floor that lose less answer mass than this cannot be told apart by it; fluency
then takes its place."""
ACROSS = {
    "coherence": "coherence (answer mass / base's)",
    "fluency": "fluency (base's perplexity / its)",
}
SHADES = ("#00805e", "#4a78b5", "#d04a02", "#8c5aa8", "#b08900", "#1b1b1b", "#3aa0a8", "#a8324a")
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "<")


class ScanPoint(Record):
    """One band at one dose."""

    band: str
    """As it was asked for, such as 0.4-0.6."""
    multiple: float
    """Dose as asked for: in multiples of the band's calibrated dose, or as it is."""
    read: DosePoint
    """Its dose is that on the raw vector."""
    on_front: bool = False
    """No other point has more of the trait at the same coherence or more."""

    @property
    def name(self) -> str:
        """Band and multiple."""
        return f"{self.band} × {self.multiple:g}"


class ScanBand(Record):
    """One band and its dose at the target KL."""

    band: str
    blocks: tuple[int, ...]
    coefficient: float
    """What a multiple of 1 is; NaN where calibration failed and nothing was read."""
    words: str
    """How the calibration ended; empty without one."""


class ScanRecord(Record):
    """A whole scan."""

    version: int = VERSION
    model: str
    fingerprint: str
    persona: Annotated[Persona | dict[str, Any], Field(union_mode="left_to_right")]
    settings: dict[str, Any]
    """The command's options that decide the readings."""
    instrument: str
    base_perplexity: float
    ranks: tuple[RankRow, ...] = ()
    """Every band's Fisher cosine, read before any text was steered."""
    bands: tuple[ScanBand, ...]
    points: tuple[ScanPoint, ...]
    against: Literal["coherence", "fluency"]
    """What the front trades the trait against."""
    knee: str = ""
    """Name of the recommended point; empty when none is."""
    words: str
    """The recommendation, or why there is none."""

    @property
    def foundation(self) -> str:
        """The persona's target foundation."""
        return str(at(self.persona, "axis", "foundation"))


def price(point: ScanPoint, against: str, base_perplexity: float) -> float:
    """The point's coherence, or its fluency: the base's perplexity over the point's.

    More than the base's is no gain, so that both end at 1.
    """
    read = point.read.summary
    value = read.coherence if against == "coherence" else base_perplexity / read.perplexity
    # In this order NaN stays NaN.
    return min(value, 1.0)


def advised(record: ScanRecord) -> ScanRecord:
    """The record with its front, its knee and what they advise.

    Only points whose trait moved as meant and that stay above the floors are advised; the front is
    over all of them, so that the figure shows what the floors leave out.
    """
    whole = [p.read.summary.coherence for p in record.points if p.read.summary.coherence >= FLOOR]
    flat = bool(whole) and min(whole) > 1 - FLAT
    against: Literal["coherence", "fluency"] = "fluency" if flat else "coherence"

    def spot(point: ScanPoint) -> tuple[float, float]:
        across = price(point, against, record.base_perplexity)
        return across, point.read.summary.gain.value

    best = set(front([spot(point) for point in record.points]))
    points = [
        point.model_copy(update={"on_front": i in best}) for i, point in enumerate(record.points)
    ]
    fit = [point for point in points if _fit(point, record.base_perplexity)]
    chosen = knee([spot(point) for point in fit])
    name = "" if chosen is None else fit[chosen].name
    return record.model_copy(
        update={
            "points": tuple(points),
            "against": against,
            "knee": name,
            "words": _advice(record, None if chosen is None else fit[chosen], flat=flat),
        }
    )


def _fit(point: ScanPoint, base_perplexity: float) -> bool:
    fluent = price(point, "fluency", base_perplexity) >= LEAST_FLUENCY
    return point.read.summary.gain.low > 0 and point.read.summary.coherence >= FLOOR and fluent


def _advice(record: ScanRecord, point: ScanPoint | None, *, flat: bool) -> str:
    why = (
        "Answer mass hardly moves where it holds, so that the front trades the trait against the "
        "perplexity of free answers. "
        if flat
        else ""
    )
    if point is None:
        return (
            f"{why}No dose is advised: none moves the trait beyond its interval at {FLOOR:g} of "
            f"the base's answer mass and at most {1 / LEAST_FLUENCY:g} times its perplexity. Try "
            "other doses, more prompts, or another persona."
        )
    low, _, high = point.band.partition("-")
    asked = record.settings
    words = ["steerheal", "run", str(asked.get("persona", at(record.persona, "name")))]
    words += ["--reverse"] if asked.get("reverse") else []
    words += ["--model.name", str(asked["model"])] if asked.get("model") else []
    words += ["--vector.band", low, high, "--dose.start", f"{point.read.dose:.3g}"]
    where = f"band {point.band} at dose {point.read.dose:.3g}"
    return f"{why}The best trade is {where}: {shlex.join(words)}"


def figure(record: ScanRecord) -> Figure:
    """The trait and the target foundation against coherence (or fluency), band by band."""
    trait = played(next((p.read.summary for p in record.points), Readings()), "trait")
    panels = (
        (f"trait: {trait.title}", f"change ({trait.difference_unit})", lambda p: p.gain),
        (
            record.foundation.capitalize(),
            "change (nats)",
            lambda p: p.delta_nats[record.foundation],
        ),
    )
    names = [band.band for band in record.bands]
    with styled():
        drawing, axes = sheet(5.0, 1, 2)
        for panel, (title, unit, read) in zip(axes, panels, strict=True):
            _draw(panel, record, names, read)
            panel.set_title(title)
            panel.set_ylabel(unit)
            panel.set_xlabel(ACROSS[record.against])
            panel.locator_params(axis="x", nbins=5)
        _join(axes[0], record)
        marks = [(name, line("-", *_style(i))) for i, name in enumerate(names)]
        ends = [("Pareto front", line("--", INK))]
        if record.knee:
            ends.append((f"best trade: {record.knee}", line("", RED, "o", hollow=True)))
        key(drawing, [*marks, *ends])
    return drawing


def _style(i: int) -> tuple[str, str]:
    return SHADES[i % len(SHADES)], SHAPES[i % len(SHAPES)]


def _draw(axes: Axes, record: ScanRecord, names: list[str], read: Any) -> None:
    level(axes, 0.0)
    drawn = 0
    for i, name in enumerate(names):
        colour, shape = _style(i)
        spots: list[tuple[float, Reading, ScanPoint]] = [
            (price(point, record.against, record.base_perplexity), read(point.read.summary), point)
            for point in record.points
            if point.band == name
        ]
        known = [spot for spot in spots if math.isfinite(spot[0]) and math.isfinite(spot[1].value)]
        drawn += len(known)
        axes.plot(
            [x for x, _, _ in known], [y.value for _, y, _ in known], color=colour, lw=1, alpha=0.5
        )
        for x, y, point in known:
            if math.isfinite(y.low) and math.isfinite(y.high):
                axes.vlines(x, y.low, y.high, color=colour, lw=1, alpha=0.4)
            size = 5 + 3 * min(2.0, point.multiple)
            axes.plot(x, y.value, shape, color=colour, ms=size, mec=CARD, mew=0.7, zorder=4)
            if point.name == record.knee:
                axes.plot(x, y.value, "o", mfc="none", mec=RED, mew=1.8, ms=19, zorder=5)
    axes.margins(0.1, 0.12)
    if not drawn:
        note(axes, "no reading")


def _join(axes: Axes, record: ScanRecord) -> None:
    """The front's steps through its points."""
    spots = sorted(
        (price(point, record.against, record.base_perplexity), point.read.summary.gain.value)
        for point in record.points
        if point.on_front
    )
    steps = {"drawstyle": "steps-pre", "color": INK, "lw": 1, "ls": "--", "zorder": 2}
    axes.plot([x for x, _ in spots], [y for _, y in spots], **steps)
