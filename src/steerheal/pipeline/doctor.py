"""What a model and this machine are to a run: template, tokenizer, memory, instruments, time."""

import math
from typing import cast

import torch

from steerheal.config import PRESETS, ModelSettings, RunConfig, resolve
from steerheal.console import Console
from steerheal.measure.qualify import in_words
from steerheal.models.batch import free_bytes
from steerheal.models.chat import opening_ids, prompt_notes
from steerheal.models.load import load
from steerheal.models.model import ChatModel
from steerheal.models.reordered import reorder
from steerheal.models.size import gigabytes
from steerheal.models.weights import vocabulary
from steerheal.personas import Persona
from steerheal.pipeline import forecast
from steerheal.pipeline.need import costs, duration, memory_line
from steerheal.pipeline.pace import Pace, measured
from steerheal.pipeline.stage_work import Counted
from steerheal.pipeline.surroundings import size_of

NOT_TRIED = (
    "Not tried: whether the persona moves this model and at which dose (--until check1 does), and "
    "whether the readings of coherence see damage on it."
)


def examine(settings: ModelSettings, persona: Persona, console: Console) -> None:
    """Says what was found, and about how long every preset would take.

    Args:
        settings: The model.
        persona: Whose prompts are counted, and whose target the instruments must see.
        console: Where it is said.

    Raises:
        UserError: a model that no run could use.
    """
    chat = load(settings)
    reorder(chat)
    for note in prompt_notes(chat):
        console.note(note)
    console.table(f"{chat.name} here", ("", "found"), findings(chat))
    configs = {name: resolve(name) for name in PRESETS}
    pace = measured(chat, configs["standard"])
    _presets(chat, persona, configs, pace, console)
    console.say(pace.words())
    console.say(NOT_TRIED)


def findings(chat: ChatModel) -> list[tuple[str, str]]:
    """What the model, its template and its tokenizer are, and where they run."""
    template, size = chat.template, size_of(chat)
    dtype = str(chat.net.dtype).removeprefix("torch.")
    begins = cast(str, chat.tokenizer.decode(opening_ids(chat))) or "nothing"
    ends = ", ".join(cast(str, chat.tokenizer.decode([token])) for token in chat.stop_ids())
    return [
        ("model", f"{type(chat.net).__name__}, {size.layers} blocks of {size.hidden}"),
        ("memory", memory_line(size, dtype, resolve(), free_bytes(chat.device))),
        ("device", f"{chat.device}, {dtype}, {torch.get_num_threads()} threads"),
        ("system role", "yes" if chat.system_role else "no: the persona opens the user turn"),
        ("thinking", template.thinking() or "the template has no switch for it"),
        ("date", template.date or "the template prints none"),
        ("a text begins with", begins),
        ("a turn ends with", ends),
        ("tokenizer", f"{type(chat.tokenizer).__name__}, {vocabulary(chat.net):,} tokens"),
    ]


def _presets(
    chat: ChatModel,
    persona: Persona,
    configs: dict[str, RunConfig],
    pace: Pace,
    console: Console,
) -> None:
    """The instruments' fitness, and a line per preset."""
    found = forecast.chosen(chat, configs["standard"].measure, persona.axis, pace)
    for attempt in found.tried:
        console.say(in_words(attempt))
    if found.note:
        console.say(found.note)
    rows = []
    for name, config in configs.items():
        fixed = config.measure.instrument
        instrument = found.measure.instrument if fixed == "auto" else fixed
        measure = config.measure.model_copy(update={"instrument": instrument})
        stages = costs(Counted(chat, persona, config.model_copy(update={"measure": measure})), pace)
        seconds = math.fsum(stage.seconds for stage in stages)
        rows.append(
            (
                name,
                f"{config.rounds}",
                instrument,
                duration(seconds),
                gigabytes(max(stage.bytes for stage in stages)),
            )
        )
    console.table("a run takes about", ("preset", "rounds", "instrument", "time", "memory"), rows)
