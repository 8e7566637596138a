"""What `steerheal evaluate` reads: a run's student, an adapter on a model, or a model alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from steerheal.commands.asking import Asked, kept_base
from steerheal.config import MeasureSettings, ModelSettings
from steerheal.console import Console
from steerheal.errors import UserError
from steerheal.filter.calibrate import calibrate, seed_of
from steerheal.filter.coherent import CoherenceRules
from steerheal.measure import guards, sight, summary
from steerheal.measure.auto import resolve
from steerheal.measure.evaluate import evaluate, size
from steerheal.measure.qualify import in_words, qualify
from steerheal.models.chat import prompt_notes
from steerheal.models.load import load
from steerheal.models.model import ChatModel
from steerheal.models.reordered import reorder
from steerheal.personas import Persona
from steerheal.pipeline.history import student_of
from steerheal.pipeline.judging import Judging
from steerheal.pipeline.stages import EVALUATE
from steerheal.records import Calibration, Evaluation, Scores
from steerheal.state.adapter import Adapter
from steerheal.state.fold import Gated, refuse_unfit
from steerheal.state.values import Plain
from steerheal.store import read_harvest, read_run


class Target(NamedTuple):
    """What is read: a model in a state, and how."""

    chat: ChatModel
    state: Plain
    persona: Persona
    name: str
    ask: Asked
    base: Scores | None = None
    """The run's own readings of its base, where they hold what is asked."""
    limits: Calibration | None = None
    """The run's own limits of the filter."""
    head: str = ""
    """What the run reads coherence by, where its doses said."""


def of_run(
    folder: Path, number: int, gate: float, persona: Persona, ask: Asked, *, console: Console
) -> Target:
    """A run's student after a round, as `student_of` finds it, at a gate."""
    record = read_run(folder)
    chat, student, last = student_of(record, folder, number, gate, console)
    base = kept_base(folder, record, chat, ask, persona, code=EVALUATE.code)
    if base is not None:
        measure = ask.measure.model_copy(update={"instrument": base.instrument})
        ask = ask._replace(measure=measure)
    name = f"{folder} round {last}, gate {gate:g}"
    # Another seed or another base's readings go with limits of their own.
    limits = None if base is None else _limits(folder)
    head = record.sight.head if record.sight else ""
    return Target(chat, student, persona, name, ask, base, limits, head)


def of_model(
    settings: ModelSettings,
    folder: Path | None,
    gate: float,
    persona: Persona,
    ask: Asked,
    *,
    console: Console,
) -> Target:
    """A model, with the adapter of a folder at a gate where one is given."""
    adapter = None if folder is None else Gated(Adapter.load(folder), gate)
    chat = load(settings)
    if adapter is None:
        return Target(chat, Plain(), persona, chat.name, ask)
    if note := adapter.adapter.named_otherwise(chat.name):
        console.note(note)
    name = f"{folder}, gate {gate:g}, on {chat.name}"
    return Target(chat, Plain((adapter,)), persona, name, ask)


def read(
    target: Target, outside: Sequence[str], console: Console, judge: Judging | None = None
) -> Evaluation:
    """The target and its base, with the damage guards from `outside`, and judged where asked for.

    Raises:
        UserError: an adapter that does not fit the model, or a guard that cannot be read.
    """
    chat, state, persona, ask = target.chat, target.state, target.persona, target.ask
    reorder(chat)
    refuse_unfit(chat, state.history)
    said = prompt_notes(chat)
    for note in said:
        console.note(note)
    settings, tried = resolve(chat, ask.measure, persona.axis)
    for attempt in tried:
        console.note(in_words(attempt))
    base = target.base
    live = any(item.gate != 0 for item in state.history)
    rules = _rules(target, console) if live or base is None else None
    if base is None:
        base = _scores("base", Plain(), target, settings, rules=rules, console=console)
    else:
        console.note("base: the run's own readings of it")
    last = (
        _scores("healed", state, target, settings, rules=rules, console=console) if live else base
    )
    console.note(in_words(qualify(base, persona.axis)))
    found: dict[str, float] = {}
    with state.entered(chat) as reader, reader.resting():
        for guard in outside:
            found |= guards.read(reader, guard)
    if judge is not None:
        states = judge.of([base, last] if live else [base], persona, console)
        base, last = states[0], states[-1]
        said.append(judge.found.words())
    return Evaluation(
        target=target.name,
        model=chat.name,
        dtype=str(chat.net.dtype).removeprefix("torch."),
        persona=persona,
        instrument=last.instrument,
        think=last.think,
        aggregates=sight.led(summary.summarise(last, base, persona.axis), target.head),
        guards=found,
        rows=last.vignettes,
        others=last.model_copy(update={"vignettes": ()}),
        how="; ".join([ask.how, *(note.rstrip(".") for note in said)]),
        settings=settings,
        seed=ask.seed,
    )


def _scores(
    role: str,
    state: Plain,
    target: Target,
    settings: MeasureSettings,
    *,
    rules: CoherenceRules | None,
    console: Console,
) -> Scores:
    with console.stage(f"reading {role}", size(settings, target.persona)) as progress:
        return evaluate(
            target.chat,
            role,
            state,
            target.persona,
            settings,
            sampling=target.ask.sampling,
            seed=target.ask.seed,
            rules=rules,
            progress=progress,
        )


def _rules(target: Target, console: Console) -> CoherenceRules:
    """What tells coherent answers: a run's own limits where it has them, else set here."""
    ask, persona = target.ask, target.persona
    limits = target.limits
    if limits is None:
        with console.stage("calibrating the filter", ask.filter.calibration_texts) as progress:
            limits = calibrate(
                target.chat, persona, ask.sampling, ask.filter.rules,
                seed=seed_of(ask.seed), progress=progress,
            ).limits  # fmt: skip
    return CoherenceRules(persona, limits, ask.filter.rules)


def _limits(folder: Path) -> Calibration | None:
    """The limits that a run's first harvest was judged by; None where it has none."""
    try:
        return read_harvest(folder, 0).calibration
    except UserError:
        return None
