"""A scan's readings: every band of blocks at every dose, against one reading of the base.

One extraction serves all bands: a band is a subset of its blocks. Every band is calibrated, then
all of its doses share their batches, and every point is paired with the same reading of the base.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from steerheal import prompts
from steerheal.commands.ranks import show
from steerheal.config import VectorSettings
from steerheal.config.tuning import TEXTS, TOKENS
from steerheal.console import Console
from steerheal.measure import sweep
from steerheal.measure.fisher import ground
from steerheal.measure.spill import base_texts
from steerheal.measure.summary import fluency
from steerheal.models.model import ChatModel
from steerheal.personas import Persona
from steerheal.records import Completion, RankRow, Scores
from steerheal.report.scan import ScanBand, ScanPoint, ScanRecord
from steerheal.state.values import base
from steerheal.state.vector import SteeringVector
from steerheal.steer.calibrate import calibrate
from steerheal.steer.rank import hull, ranked, within
from steerheal.steer.vector import extract


class Band(NamedTuple):
    """Fractions of depth, and how they were written."""

    text: str
    low: float
    high: float


class Tried(NamedTuple):
    """What is steered, how hard, and how the vector is made."""

    bands: Sequence[Band]
    doses: Sequence[float]
    """Multiples of each band's calibrated dose."""
    target_kl: float
    """In nats, at a multiple of 1; 0 is no calibration."""
    contexts: int


def read(chat: ChatModel, tried: Tried, ask: sweep.Asked, console: Console) -> ScanRecord:
    """Every band at every dose."""
    whole = _extracted(chat, tried, ask.persona, console)
    ranks = _ranked(chat, tried, whole, ask, console)
    with console.stage("base", ask.rows) as progress:
        (zero,) = sweep.read(chat, base().steered(whole, 1.0), (0.0,), ask, progress)
    texts = [row.completion for row in zero.persona]
    found: list[ScanBand] = []
    points: list[ScanPoint] = []
    for band in tried.bands:
        vector = within(chat, whole, (band.low, band.high))
        found.append(_calibrated(chat, band, vector, texts, tried.target_kl))
        if not math.isfinite(found[-1].coefficient):
            console.note(f"band {band.text} left out: {found[-1].words}")
            continue
        points += _points(chat, found[-1], vector, zero, ask, tried=tried, console=console)
    return ScanRecord(
        model=chat.name,
        fingerprint=chat.fingerprint,
        persona=ask.persona,
        settings={},
        instrument=ask.measure.instrument,
        base_perplexity=fluency(zero, ask.persona.axis),
        ranks=ranks,
        bands=tuple(found),
        points=tuple(points),
        against="coherence",
        words="",
    )


def _extracted(chat: ChatModel, tried: Tried, persona: Persona, console: Console) -> SteeringVector:
    """The vector on every block from the first to the last that any band steers."""
    bands = {band.text: (band.low, band.high) for band in tried.bands}
    settings = VectorSettings(contexts=tried.contexts, band=hull(len(chat.blocks), bands))
    chosen = prompts.first_contexts(tried.contexts)
    with console.stage("vector", 2 * len(chosen)) as progress:
        return extract(chat, persona, chosen, settings, progress)


def _ranked(
    chat: ChatModel, tried: Tried, whole: SteeringVector, ask: sweep.Asked, console: Console
) -> tuple[RankRow, ...]:
    """Every band's Fisher cosine, shown before any text is steered."""
    sampling = ask.sampling.model_copy(update={"tokens": TOKENS})
    texts = base_texts(chat, ask.persona.prompts.train[:TEXTS], sampling, seed=ask.seed)
    bands = {band.text: within(chat, whole, (band.low, band.high)) for band in tried.bands}
    with console.stage("directions", len(bands)) as progress:
        found = [(VectorSettings(contexts=tried.contexts), bands)]
        rows = tuple(ranked(chat, ground(chat, ask.persona, texts), found, progress))
    show(rows, f"bands for {ask.persona.name}", console)
    return rows


def _calibrated(
    chat: ChatModel,
    band: Band,
    vector: SteeringVector,
    texts: Sequence[Completion],
    target: float,
) -> ScanBand:
    blocks = tuple(vector.layers)
    if target == 0:
        return ScanBand(band=band.text, blocks=blocks, coefficient=1.0, words="")
    found = calibrate(chat, base().steered(vector, 1.0), texts, target)
    return ScanBand(band=band.text, blocks=blocks, coefficient=found.dose, words=found.words())


def _points(
    chat: ChatModel,
    band: ScanBand,
    vector: SteeringVector,
    zero: Scores,
    ask: sweep.Asked,
    *,
    tried: Tried,
    console: Console,
) -> list[ScanPoint]:
    multiples = sorted(set(tried.doses))
    doses = [multiple * band.coefficient for multiple in multiples]
    with console.stage(f"band {band.band}", ask.rows * len(doses)) as progress:
        read = sweep.read(chat, base().steered(vector, 1.0), doses, ask, progress)
    axis = ask.persona.axis
    return [
        ScanPoint(
            band=band.band,
            multiple=multiple,
            read=sweep.point(scores, zero, axis, dose=dose),
        )
        for multiple, dose, scores in zip(multiples, doses, read, strict=True)
    ]
