"""Upstream itself as an instrument: calls the package `moralmaps` and fills our rows.

The package is optional; its think budget is at least 1, and it reads no doses per row.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

from steerheal.config import MeasureSettings
from steerheal.errors import UserError
from steerheal.measure.instrument import Instrument, Progress, Read
from steerheal.measure.vignettes import COARSE, Vignette
from steerheal.records import FOUNDATIONS, VignetteRow

if TYPE_CHECKING:
    from steerheal.models.model import ChatModel

NAME = "moralmaps"
HOW = "pip install git+https://github.com/wassname/moral-maps"


def refuse_absent(think: int) -> None:
    """Looks whether upstream can read at all, before anything is loaded.

    Raises:
        UserError: the package is not installed, or thinking is off.
    """
    if importlib.util.find_spec(NAME) is None:
        raise UserError(
            f"The instrument moralmaps needs the package of that name: `{HOW}`. "
            "Or take forced_choice, which reads the same protocol."
        )
    if think < 1:
        raise UserError("The instrument moralmaps needs measure.think of at least 1.")


def read(chat: "ChatModel", vignettes: Sequence[Vignette], *, think: int) -> list[VignetteRow]:
    """A row per vignette, in the order given, as upstream reads it.

    Raises:
        UserError: the package is not installed, or thinking is off.
    """
    refuse_absent(think)
    upstream = importlib.import_module(NAME)
    names = {name: label for label, name in COARSE.items()}
    rows: dict[tuple[str, str], VignetteRow] = {}
    for condition in dict.fromkeys(vignette.condition for vignette in vignettes):
        asked = [vignette for vignette in vignettes if vignette.condition == condition]
        column = f"{condition}_violate"
        report = upstream.evaluate(
            chat.net,
            chat.template.speaking(),
            vignettes=[
                {"id": v.id, column: v.text, "foundation_coarse": names[v.foundation]}
                for v in asked
            ],
            conditions=(column,),
            max_think_tokens=think,
            return_per_row=True,
            verbose=0,
        )
        for vignette, row in zip(asked, report["per_row"], strict=True):
            rows[vignette.id, condition] = _row(vignette, row)
    return [rows[vignette.id, vignette.condition] for vignette in vignettes]


def _row(vignette: Vignette, row: dict) -> VignetteRow:
    assert len(row["score"]) == len(FOUNDATIONS), f"{len(row['score'])} scores of 7"
    return VignetteRow(
        id=vignette.id,
        condition=vignette.condition,
        foundation=vignette.foundation,
        score=tuple(float(value) for value in row["score"]),
        p=tuple(float(value) for value in row["p"]),
        p_ans_any=float(row["pmass_allowed"]),
        nll_prefill=float(row["nll_prefill"]),
    )


def _sweep(
    chat: "ChatModel", vignettes: Sequence[Vignette], settings: MeasureSettings, progress: Progress
) -> list[Read]:
    """One state after the other: upstream runs the network itself."""
    found = []
    for state in range(chat.entered):
        with chat.resting(state):
            rows = read(chat, vignettes, think=settings.think)
        found.append(Read(rows))
        progress(len(rows))
    return found


INSTRUMENT = Instrument(_sweep, thinks=True)
