"""Directions ranked by their Fisher cosine, before any text is steered by them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from steerheal.config import VectorSettings
from steerheal.measure.fisher import Ground, fisher
from steerheal.models.model import ChatModel, band_layers
from steerheal.personas import Persona
from steerheal.records import RankRow
from steerheal.state.values import base
from steerheal.state.vector import SteeringVector
from steerheal.steer.methods.find import find
from steerheal.steer.vector import extract

SMALL = 0.25
"""Dose that a direction is read at: the cosine is a limit for small ones, and numbers are short."""

Bands = Mapping[str, tuple[float, float]]
"""Fractions of depth, by how they were written."""


def hull(depth: int, bands: Bands) -> tuple[float, float]:
    """The band from the first to the last block that any of the bands steers."""
    layers = {i for band in bands.values() for i in band_layers(depth, band)}
    return min(layers) / depth, (max(layers) + 1) / depth


def within(chat: ChatModel, vector: SteeringVector, band: tuple[float, float]) -> SteeringVector:
    """The vector's share on a band's blocks."""
    layers = band_layers(len(chat.blocks), band)
    return replace(vector, layers={layer: vector.layers[layer] for layer in layers})


def directions(
    chat: ChatModel,
    persona: Persona,
    contexts: Sequence[str],
    settings: VectorSettings,
    *,
    bands: Bands,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, SteeringVector]:
    """The direction on every band; extracted once for all, where the method allows it.

    Args:
        chat: The model, in no state.
        persona: Whose poles are compared.
        contexts: User messages.
        settings: Everything but the band.
        bands: At least one.
        progress: Called with the number of rows written or read since the last call.

    Raises:
        UserError: as `extract`.
    """
    if find(settings.method).joint:
        return {
            text: extract(
                chat, persona, contexts, settings.model_copy(update={"band": band}), progress
            )
            for text, band in bands.items()
        }
    wide = settings.model_copy(update={"band": hull(len(chat.blocks), bands)})
    whole = extract(chat, persona, contexts, wide, progress)
    return {text: within(chat, whole, band) for text, band in bands.items()}


def ranked(
    chat: ChatModel,
    ground: Ground,
    found: Sequence[tuple[VectorSettings, Mapping[str, SteeringVector]]],
    progress: Callable[[int], None] = lambda _: None,
) -> list[RankRow]:
    """A row per direction and band, the largest held-out cosine first.

    Args:
        chat: The model, in no state.
        ground: Text of the base.
        found: Settings, and the directions that they gave on every band.
        progress: Called with the number of directions read since the last call.
    """
    tried = [(how, band, vector) for how, bands in found for band, vector in bands.items()]
    states = [base().steered(vector, SMALL) for *_, vector in tried]
    rows = [
        RankRow(
            method=how.method,
            contrast=how.contrast,
            wordings=how.wordings,
            band=band,
            blocks=tuple(vector.layers),
            dose=SMALL,
            read=read,
        )
        for (how, band, vector), read in zip(
            tried, fisher(chat, ground, states, progress), strict=True
        )
    ]
    return sorted(rows, key=_place)


def _place(row: RankRow) -> float:
    value = row.read.held_out.value
    return math.inf if math.isnan(value) else -value
