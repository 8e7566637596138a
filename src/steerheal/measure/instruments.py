"""The instruments behind one door: vignettes in, rows out, whichever of them reads."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from steerheal.config import MeasureSettings
from steerheal.measure import forced_choice, likelihood, moralmaps, protocol
from steerheal.measure.vignettes import Vignette, chosen
from steerheal.models.hooks import Dosed
from steerheal.models.load import ChatModel
from steerheal.records import VignetteRow


class Read(NamedTuple):
    """What an instrument read, and what it has to say about its reading."""

    rows: list[VignetteRow]
    position_bias: tuple[float, ...] = ()
    closed_early: int = 0


def texts(settings: MeasureSettings) -> list[str]:
    """Every text that a reading hangs on: what a file says counts, not what it is called."""
    wording = Path(settings.protocol).read_text(encoding="utf-8") if settings.protocol else ""
    return [wording, *(vignette.text for vignette in chosen(settings))]


def read(
    chat: ChatModel,
    vignettes: Sequence[Vignette],
    settings: MeasureSettings,
    *,
    dosed: Dosed | None = None,
    dose: float = 0.0,
    progress: Callable[[int], None] = lambda _: None,
) -> Read:
    """The settings' instrument on the vignettes; `auto` must have been resolved before.

    Args:
        chat: The model in the state to be read.
        vignettes: What is asked.
        settings: The instrument and its options.
        dosed: The handle of a steered state.
        dose: Its dose.
        progress: Called with the number of vignettes done.
    """
    match settings.instrument:
        case "likelihood":
            return Read(likelihood.read(chat, vignettes, progress))
        case "moralmaps":
            rows = moralmaps.read(chat, vignettes, think=settings.think)
            progress(len(rows))
            return Read(rows)
        case "forced_choice":
            found = forced_choice.read(
                chat,
                vignettes,
                protocol.load(Path(settings.protocol) if settings.protocol else None),
                think=settings.think,
                orders=settings.orders,
                dosed=dosed,
                dose=dose,
                progress=progress,
            )
            if dosed is not None:
                dosed.set(dose)
            cycled = settings.orders == "cyclic"
            return Read(found.rows, found.position_bias if cycled else (), found.closed_early)
        case "auto":
            raise AssertionError("auto is resolved on the base before anything is read")
