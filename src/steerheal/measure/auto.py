"""`--instrument auto`: forced_choice if the base can answer it, else likelihood; and says why."""

from collections.abc import Callable
from typing import NamedTuple

from steerheal.config import Instrument, MeasureSettings
from steerheal.errors import UserError
from steerheal.measure import instruments, vignettes
from steerheal.measure.qualify import Qualification, choose, qualify, refused
from steerheal.models.model import ChatModel
from steerheal.personas import Axis
from steerheal.records import Record, Scores

PER_FOUNDATION, THINK = 3, 16
"""Size of the trial: enough to see an answer mass near 0 and an accuracy at chance."""


class Resolved(NamedTuple):
    """The settings with an instrument that reads, and what was tried on the way."""

    settings: MeasureSettings
    tried: tuple[Qualification, ...]


class Tried(Record):
    """Which instrument was chosen, and what was tried."""

    instrument: Instrument
    tried: tuple[Qualification, ...]


def resolve(chat: ChatModel, settings: MeasureSettings, axis: Axis) -> Resolved:
    """The instrument for this model; a named one is taken at its word.

    Args:
        chat: The base, unsteered and unfolded.
        settings: With `auto`, a few vignettes are tried with every instrument until one is fit.
        axis: The target that has to be seen.
    """
    if settings.instrument != "auto":
        return Resolved(settings, ())
    found = tried(chat, settings, axis)
    return Resolved(settings.model_copy(update={"instrument": found.instrument}), found.tried)


def tried(
    chat: ChatModel,
    settings: MeasureSettings,
    axis: Axis,
    progress: Callable[[int], None] = lambda _: None,
) -> Tried:
    """The first instrument that is fit, or the best of those that are not; as in `resolve`."""
    found: list[Qualification] = []
    for trial in trials(settings):
        found.append(_try(chat, trial, axis))
        if found[-1].fit:
            break
    progress(1)
    return Tried(instrument=choose(found).instrument, tried=tuple(found))


def trials(settings: MeasureSettings) -> list[MeasureSettings]:
    """How every instrument is tried, in the order in which they are."""
    per = min(PER_FOUNDATION, settings.per_foundation or PER_FOUNDATION)
    think = min(THINK, settings.think)
    return [
        settings.model_copy(update={"instrument": name, "per_foundation": per, "think": think})
        for name in ("forced_choice", "likelihood")
    ]


def _try(chat: ChatModel, trial: MeasureSettings, axis: Axis) -> Qualification:
    try:
        read = instruments.read(chat, vignettes.chosen(trial), trial)
    except UserError as error:
        return refused(trial.instrument, str(error))
    scores = Scores(
        state="base",
        instrument=trial.instrument,
        vignettes=tuple(read.rows),
        canary=(),
        persona=(),
    )
    return qualify(scores, axis)
