"""The instruments behind one door: vignettes in, rows out, whichever of them reads."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from steerheal.config import MeasureSettings
from steerheal.measure import forced_choice, likelihood, moralmaps, protocol
from steerheal.measure.readings import table
from steerheal.measure.vignettes import Vignette, chosen
from steerheal.models.model import ChatModel
from steerheal.records import VignetteRow


class Read(NamedTuple):
    """What an instrument read, and what it has to say about its reading."""

    rows: list[VignetteRow]
    position_bias: tuple[float, ...] = ()
    closed_early: int = 0


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
    match settings.instrument:
        case "likelihood":
            return [Read(rows) for rows in likelihood.sweep(chat, vignettes, progress)]
        case "moralmaps":
            upstream = []
            for state in range(chat.entered):
                with chat.resting(state):
                    rows = moralmaps.read(chat, vignettes, think=settings.think)
                upstream.append(Read(rows))
                progress(len(rows))
            return upstream
        case "forced_choice":
            forced = forced_choice.sweep(
                chat,
                vignettes,
                protocol.load(Path(settings.protocol) if settings.protocol else None),
                think=settings.think,
                orders=settings.orders,
                progress=progress,
            )
            cycled = settings.orders == "cyclic"
            return [
                Read(one.rows, one.position_bias if cycled else (), one.closed_early)
                for one in forced
            ]
        case "auto":
            raise AssertionError("auto is resolved on the base before anything is read")
