"""What a run will cost here, told before it is made; nothing is written."""

import math
from collections.abc import Collection
from typing import NamedTuple

from steerheal import ranks
from steerheal.config import MeasureSettings, RunConfig
from steerheal.console import Console
from steerheal.measure import auto, vignettes
from steerheal.measure.qualify import Qualification, in_words
from steerheal.models.model import ChatModel
from steerheal.models.size import gigabytes
from steerheal.personas import Axis, Persona
from steerheal.pipeline.ends import Until
from steerheal.pipeline.need import StageCost, costs, duration
from steerheal.pipeline.pace import Pace, measured
from steerheal.pipeline.stage_work import ASSUMED, Counted
from steerheal.pipeline.stages import BASE
from steerheal.pipeline.work import Passes, Work

TRIAL = 60.0
"""Seconds that a trial of the instruments may take before a run."""


class Chosen(NamedTuple):
    """The instrument that is counted, and what is known of it."""

    measure: MeasureSettings
    tried: tuple[Qualification, ...]
    note: str = ""
    """Why it was not tried, where it was not."""


def chosen(chat: ChatModel, measure: MeasureSettings, axis: Axis, pace: Pace) -> Chosen:
    """The settings with an instrument; `auto` is resolved by its trial, where that is short."""
    if measure.instrument != "auto":
        return Chosen(measure, ())
    passes, work = Passes(chat, 1), Work()
    for trial in auto.trials(measure):
        work += passes.vignettes(vignettes.chosen(trial), trial)
    if (least := ranks.told(pace.seconds(work))) <= TRIAL:
        found = auto.resolve(chat, measure, axis)
        return Chosen(found.settings, found.tried)
    longer = auto.trials(measure)[0].instrument
    note = (
        f"Which instrument is fit on this model was not tried, since that takes about "
        f"{duration(least)}; {longer}, the longer one, is counted."
    )
    return Chosen(measure.model_copy(update={"instrument": longer}), (), note)


def told(
    chat: ChatModel,
    persona: Persona,
    config: RunConfig,
    *,
    until: Until | None,
    done: Collection[tuple[int, str]],
    console: Console,
) -> None:
    """Says what every stage will cost, and what the estimate is made from.

    Args:
        chat: The model.
        persona: The run's.
        config: Its settings.
        until: The check after which it ends.
        done: Rounds and names of stages that the run has already.
        console: Where it is said.
    """
    pace = measured(chat, config)
    found = chosen(chat, config.measure, persona.axis, pace)
    for attempt in found.tried:
        console.note(in_words(attempt))
    counted = Counted(
        chat, persona, config.model_copy(update={"measure": found.measure}),
        config.measure if config.measure.instrument == "auto" else None,
    )  # fmt: skip
    rows = [
        cost for cost in costs(counted, pace, until=until)
        if (cost.stage.round, cost.stage.name) not in done
    ]  # fmt: skip
    table(rows, f"plan of {persona.name} on {chat.name}", console)
    said = [found.note, f"Assumed: {ASSUMED}.", pace.words()]
    if config.judge:
        said.append(f"What the judge {config.judge} takes is not counted.")
    if done:
        said.append(f"Left out: {len(done)} stages that are made already.")
    for sentence in filter(None, said):
        console.say(sentence)


def table(rows: list[StageCost], title: str, console: Console) -> None:
    """A line per stage, and their sum."""
    cells = [
        (
            "base" if cost.stage.round == BASE else f"round {cost.stage.round + 1}",
            cost.stage.name,
            *_tokens(cost.stage.work),
            duration(cost.seconds),
            gigabytes(cost.bytes),
        )
        for cost in rows
    ]
    whole = sum((cost.stage.work for cost in rows), Work())
    seconds, peak = math.fsum(cost.seconds for cost in rows), max(c.bytes for c in rows)
    cells.append(("total", "", *_tokens(whole), duration(seconds), gigabytes(peak)))
    columns = ("", "stage", "read [tokens]", "sampled", "trained", "time", "memory")
    console.table(title, columns, cells)


def _tokens(work: Work) -> tuple[str, str, str]:
    read, sampled, trained = (
        f"{count:,.0f}" if count else "" for count in (work.read, work.sampled, work.trained)
    )
    return read, sampled, trained
