"""`steerheal scan`: which blocks to steer and how hard, read as trait against coherence.

One extraction serves all bands: a band is a subset of its blocks. Every band is calibrated, then
all of its doses share their batches, and every point is paired with the same reading of the base.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from steerheal import prompts
from steerheal.cli import ScanCommand
from steerheal.config import (
    CheckSettings,
    MeasureSettings,
    SamplingSettings,
    VectorSettings,
)
from steerheal.console import Console
from steerheal.disk import write_bytes, write_text
from steerheal.errors import UserError
from steerheal.measure import sweep, vignettes
from steerheal.measure.auto import resolve
from steerheal.measure.qualify import in_words
from steerheal.measure.summary import median_perplexity
from steerheal.models.chat import prompt_notes
from steerheal.models.load import load
from steerheal.models.model import ChatModel, band_layers
from steerheal.numbers import shown
from steerheal.personas import Persona, find
from steerheal.records import Completion, Scores
from steerheal.report.draw import png, svg
from steerheal.report.scan import ScanBand, ScanPoint, ScanRecord, advised, figure
from steerheal.state.values import base
from steerheal.state.vector import SteeringVector
from steerheal.steer.calibrate import calibrate
from steerheal.steer.vector import extract
from steerheal.store import read_record, write_record

RECORD, FIGURE = "scan.json", "scan"


class Band(NamedTuple):
    """Fractions of depth, and how they were written."""

    text: str
    low: float
    high: float


def scan(options: ScanCommand, console: Console) -> None:
    """`steerheal scan`."""
    persona = find(options.persona, reverse=options.reverse)
    bands = [parse(text) for text in dict.fromkeys(options.bands)]
    if not bands or not options.doses:
        what = "dose" if bands else "band"
        raise UserError(f"There is no {what} to try; name one or more after --{what}s.")
    options = _within_pool(options, persona, console)
    settings = options.model_dump(mode="json", exclude={"out"})
    out = options.out or Path("runs") / f"scan-{persona.name}"
    _refuse_other(out, settings)
    prompts.first_contexts(options.contexts)
    vignettes.chosen(options.measure())
    chat = load(options.asked_model())
    for note in prompt_notes(chat):
        console.note(note)
    measure, tried = resolve(chat, options.measure(), persona.axis)
    for attempt in tried:
        console.note(in_words(attempt))
    record = read(chat, persona, bands, options, measure, console=console)
    record = advised(record.model_copy(update={"settings": settings}))
    drawing = figure(record)
    write_record(out / RECORD, record)
    write_text(out / f"{FIGURE}.svg", svg(drawing, FIGURE))
    write_bytes(out / f"{FIGURE}.png", png(drawing))
    _show(record, console)
    console.say(f"record  {out / RECORD}\nfigure  {out / FIGURE}.png")


def parse(text: str) -> Band:
    """A band such as 0.4-0.6.

    Raises:
        UserError: not two rising fractions of depth.
    """
    low, _, high = text.partition("-")
    try:
        band = Band(text, float(low), float(high))
    except ValueError:
        band = None
    if band is None or not 0 <= band.low < band.high <= 1:
        raise UserError(
            f"{text!r} is not a band. Give two rising fractions of depth, such as 0.4-0.6."
        )
    return band


def read(
    chat: ChatModel,
    persona: Persona,
    bands: Sequence[Band],
    options: ScanCommand,
    measure: MeasureSettings,
    *,
    console: Console,
) -> ScanRecord:
    """Every band at every dose."""
    whole = _extracted(chat, persona, bands, options, console)
    check = CheckSettings(
        prompts=options.prompts, per_foundation=options.per_foundation, tokens=options.tokens
    )
    ask = sweep.asked(persona, check, measure, SamplingSettings(), options.seed)
    with console.stage("base", ask.rows) as progress:
        (zero,) = sweep.read(chat, base().steered(whole, 1.0), (0.0,), ask, progress)
    texts = [row.completion for row in zero.persona]
    found: list[ScanBand] = []
    points: list[ScanPoint] = []
    for band in bands:
        layers = band_layers(len(chat.blocks), (band.low, band.high))
        vector = replace(whole, layers={layer: whole.layers[layer] for layer in layers})
        found.append(_calibrated(chat, band, vector, texts, options.target_kl))
        if not math.isfinite(found[-1].coefficient):
            console.note(f"band {band.text} left out: {found[-1].words}")
            continue
        points += _points(chat, found[-1], vector, zero, ask, options=options, console=console)
    return ScanRecord(
        model=chat.name,
        fingerprint=chat.fingerprint,
        persona=persona.model_dump(mode="json"),
        settings={},
        instrument=measure.instrument,
        base_perplexity=median_perplexity(zero),
        bands=tuple(found),
        points=tuple(points),
        against="coherence",
        words="",
    )


def _extracted(
    chat: ChatModel,
    persona: Persona,
    bands: Sequence[Band],
    options: ScanCommand,
    console: Console,
) -> SteeringVector:
    """The vector on every block from the first to the last that any band steers."""
    depth = len(chat.blocks)
    layers = {i for band in bands for i in band_layers(depth, (band.low, band.high))}
    hull = (min(layers) / depth, (max(layers) + 1) / depth)
    settings = VectorSettings(contexts=options.contexts, band=hull)
    chosen = prompts.first_contexts(options.contexts)
    with console.stage("vector", 2 * len(chosen)) as progress:
        return extract(chat, persona, chosen, settings, progress)


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
    return ScanBand(
        band=band.text, blocks=blocks, coefficient=found.coefficient, words=found.words()
    )


def _points(
    chat: ChatModel,
    band: ScanBand,
    vector: SteeringVector,
    zero: Scores,
    ask: sweep.Asked,
    *,
    options: ScanCommand,
    console: Console,
) -> list[ScanPoint]:
    multiples = sorted(set(options.doses))
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


def _refuse_other(out: Path, settings: dict[str, object]) -> None:
    if not (out / RECORD).exists():
        return
    if read_record(out / RECORD, ScanRecord).settings != settings:
        raise UserError(
            f"{out} holds a scan with other settings. Choose another folder with --out, or remove "
            "it."
        )


def _within_pool(options: ScanCommand, persona: Persona, console: Console) -> ScanCommand:
    """The options with no more prompts than the persona has, and a note when that cuts any."""
    have = len(persona.prompts.evaluate)
    if options.prompts <= have:
        return options
    console.note(prompts.cut("--prompts", options.prompts, persona.name, have))
    return options.model_copy(update={"prompts": have})


def _show(record: ScanRecord, console: Console) -> None:
    columns = (
        "band", "dose", "Δtrait [nats/token]", f"Δ{record.foundation} [nats]", "coherence",
        "KL", "perplexity", "front",
    )  # fmt: skip
    rows = [
        (
            point.band,
            f"{point.read.dose:.3g} (×{point.multiple:g})",
            shown(point.read.delta_logodds),
            shown(point.read.delta_nats[record.foundation]),
            shown(point.read.coherence),
            shown(point.read.kl),
            shown(point.read.perplexity, 1),
            ("knee" if point.name == record.knee else "yes") if point.on_front else "",
        )
        for point in record.points
    ]
    title = (
        f"scan of {record.persona['name']} on {record.model} · base perplexity "
        f"{record.base_perplexity:.1f} · front against {record.against}"
    )
    console.table(title, columns, rows)
    console.say(record.words)
