"""The instruments behind one door: vignettes in, rows out, whichever of them reads."""

from collections.abc import Callable, Sequence
from pathlib import Path

from steerheal.config import MeasureSettings
from steerheal.measure.instrument import Instrument, Read
from steerheal.measure.readings import table
from steerheal.measure.vignettes import Vignette, chosen
from steerheal.models.model import ChatModel
from steerheal.tables import INSTRUMENTS


def find(name: str) -> Instrument:
    """The instrument of that name; a bare function that sweeps is one as well.

    Raises:
        UserError: no such instrument.
    """
    found = INSTRUMENTS.find(name)
    assert found is not None, f"{name} is resolved on the base before anything is read"
    return found if isinstance(found, Instrument) else Instrument(found)


def thought(settings: MeasureSettings) -> int:
    """Tokens of thinking before an answer, as a reading's record says it."""
    return settings.think if find(settings.instrument).thinks else 0


def texts(settings: MeasureSettings) -> list[str]:
    """All that an evaluation takes from files, and what makes the rows that readings bring.

    What files say counts, not what they are called.
    """
    wording = Path(settings.protocol).read_text(encoding="utf-8") if settings.protocol else ""
    rows = (vignette.model_dump_json() for vignette in chosen(settings))
    return [wording, *rows, *table.revisions()]


def read(
    chat: ChatModel,
    vignettes: Sequence[Vignette],
    settings: MeasureSettings,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> Read:
    """The settings' instrument on the vignettes; `auto` must have been resolved before.

    Args:
        chat: The model, or what a state's door gives.
        vignettes: What is asked.
        settings: The instrument and its options.
        progress: Called with the number of vignettes done.
    """
    return sweep(chat, vignettes, settings, progress=progress)[0]


def sweep(
    chat: ChatModel,
    vignettes: Sequence[Vignette],
    settings: MeasureSettings,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Read]:
    """A reading per entered state, in the same batches; moralmaps takes them one by one.

    Args:
        chat: The model, or what a state's door gives.
        vignettes: What is asked.
        settings: The instrument and its options; `auto` must have been resolved before.
        progress: Called with the number of vignettes done, over all states.

    Raises:
        UserError: moralmaps, of a state that is more than adapters and vectors.
    """
    return find(settings.instrument).sweep(chat, vignettes, settings, progress)
