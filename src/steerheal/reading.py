"""`steerheal evaluate`: reads a target with the chosen instrument, saves, shows and compares it."""

import math
from pathlib import Path
from typing import NamedTuple

from steerheal.asking import Asked, asked, is_run, kept_base
from steerheal.cli import EvaluateCommand
from steerheal.config import MeasureSettings, ModelSettings, RunConfig, validated
from steerheal.console import Console
from steerheal.history import round_of, student_of
from steerheal.measure import guards, summary
from steerheal.measure.auto import resolve
from steerheal.measure.compare import compare
from steerheal.measure.evaluate import evaluate as evaluate_state
from steerheal.measure.evaluate import size
from steerheal.measure.qualify import in_words, qualify
from steerheal.models.chat import prompt_notes
from steerheal.models.load import load
from steerheal.models.model import ChatModel
from steerheal.numbers import shown
from steerheal.personas import Persona, find
from steerheal.records import FOUNDATIONS, Comparison, Evaluation, Reading, Scores
from steerheal.state.adapter import Adapter
from steerheal.state.fold import Gated, refuse_unfit
from steerheal.state.values import Plain
from steerheal.store import read_record, read_run, read_scores, write_record

BAR = 24
"""Width of the figure's bars, in characters."""


class Target(NamedTuple):
    """What is read: a model in a state, and how."""

    chat: ChatModel
    state: Plain
    persona: Persona
    name: str
    ask: Asked
    base: Scores | None = None
    """The run's own readings of its base, where they hold what is asked."""


def evaluate(options: EvaluateCommand, console: Console) -> None:
    """`steerheal evaluate`."""
    other = None if options.against is None else _saved(options.against, console)
    if options.target is not None and options.target.is_file():
        found = read_record(options.target, Evaluation)
    else:
        found = _read(options, console)
    axis = Persona.model_validate(found.persona).axis
    _show(found, console)
    if options.json_out is not None:
        write_record(options.json_out, found)
        console.say(f"readings  {options.json_out}")
    if other is not None:
        _show_comparison(compare(found.scores, other, axis), str(options.against), console)


def _read(options: EvaluateCommand, console: Console) -> Evaluation:
    target = _target(options, console)
    chat, state, persona, ask = target.chat, target.state, target.persona, target.ask
    refuse_unfit(chat, state.history)
    said = prompt_notes(chat)
    for note in said:
        console.note(note)
    settings, tried = resolve(chat, ask.measure, persona.axis)
    for attempt in tried:
        console.note(in_words(attempt))
    base = target.base
    if base is None:
        base = _scores("base", Plain(), target, settings, console)
    else:
        console.note("base: the run's own readings of it")
    live = any(item.gate != 0 for item in state.history)
    last = _scores("healed", state, target, settings, console) if live else base
    console.note(in_words(qualify(base, persona.axis)))
    outside: dict[str, float] = {}
    with state.entered(chat) as reader, reader.resting():
        for guard in options.guard:
            outside |= guards.read(reader, guard)
    return Evaluation(
        target=target.name,
        model=chat.name,
        dtype=str(chat.net.dtype).removeprefix("torch."),
        persona=persona.model_dump(mode="json"),
        instrument=last.instrument,
        think=last.think,
        aggregates=summary.summarise(last, base, persona.axis),
        guards=outside,
        rows=last.vignettes,
        others=last.model_copy(update={"vignettes": ()}),
        how="; ".join([ask.how, *(note.rstrip(".") for note in said)]),
        settings=settings.model_dump(mode="json") | {"seed": ask.seed},
    )


def _scores(
    role: str,
    state: Plain,
    target: Target,
    settings: MeasureSettings,
    console: Console,
) -> Scores:
    with console.stage(f"reading {role}", size(settings, target.persona)) as progress:
        return evaluate_state(
            target.chat,
            role,
            state,
            target.persona,
            settings,
            sampling=target.ask.sampling,
            seed=target.ask.seed,
            progress=progress,
        )


def _target(options: EvaluateCommand, console: Console) -> Target:
    """What the options name, and how it is read; that is settled before anything is loaded."""
    where = options.target
    if where is not None and is_run(where):
        record = read_run(where)
        persona = validated(Persona, record.persona, source=str(where))
        ask = _announced(asked(options, persona), console)
        chat, student, number = student_of(record, where, options.round, options.gate, console)
        base = kept_base(where, record, chat, ask, persona)
        if base is not None:
            measure = ask.measure.model_copy(update={"instrument": base.instrument})
            ask = ask._replace(measure=measure)
        name = f"{where} round {number}, gate {options.gate:g}"
        return Target(chat, student, persona, name, ask, base)
    persona = find(options.persona)
    ask = _announced(asked(options, persona), console)
    adapter = None if where is None else Gated(Adapter.load(where), options.gate)
    chat = load(_model(options))
    if adapter is None:
        return Target(chat, Plain(), persona, chat.name, ask)
    if note := adapter.adapter.named_otherwise(chat.name):
        console.note(note)
    name = f"{where}, gate {options.gate:g}, on {chat.name}"
    return Target(chat, Plain((adapter,)), persona, name, ask)


def _model(options: EvaluateCommand) -> ModelSettings:
    """The model that is asked for, its template as in the run that it is held against."""
    settings = options.asked_model()
    if options.against is None or not is_run(options.against):
        return settings
    run = validated(RunConfig, read_run(options.against).config, source=str(options.against)).model
    typed = options.model_fields_set
    own = {name: getattr(run, name) for name in ("template_vars", "date") if name not in typed}
    return settings.model_copy(update=own)


def _announced(ask: Asked, console: Console) -> Asked:
    console.note(ask.how)
    return ask


def _saved(path: Path, console: Console) -> Scores:
    """Readings to compare with, from a file or a run's best round."""
    if path.is_file():
        return read_record(path, Evaluation).scores
    record = read_run(path)
    return read_scores(path, round_of(record, path, 0, console) - 1, "healed")


def _show(found: Evaluation, console: Console) -> None:
    sums = found.aggregates
    rows = [
        (
            name,
            f"{sums.nats[name]:.3f}",
            _bar(sums.nats[name]),
            shown(sums.delta_nats[name]),
        )
        for name in FOUNDATIONS
    ]
    title = f"{found.target} · {found.instrument} · {len(found.rows)} vignettes"
    title += f" · {found.how}" if found.how else ""
    console.table(title, ("foundation", "nats", "mean probability", "change from the base"), rows)
    readings: list[tuple[str, Reading | float | None]] = [
        ("persona log-odds [nats/token]", sums.persona_logodds),
        ("  change from the base", sums.delta_logodds),
        ("answer mass", sums.p_ans_any),
        ("JSON replies that parse", sums.json_is_valid),
        ("perplexity of the JSON opening", sums.ppx_json),
        ("KL to base [nats/token]", sums.kl_to_base),
        ("guard: top-1 of 7", sums.top1),
        ("guard: share of 'not wrong'", sums.not_wrong),
        ("guard: perplexity of plain prose", sums.plain_perplexity),
        ("guard: long answers, tail perplexity", sums.long_perplexity),
        ("guard: long answers, distinct-2", sums.long_distinct_2),
        ("guard: long answers that loop", sums.loop_share),
        ("guard: long answers, words", sums.long_words),
        *found.guards.items(),
    ]
    console.table("coherence and guard", ("reading", "value"), [(n, shown(v)) for n, v in readings])


def _bar(nats: float) -> str:
    share = 0.0 if math.isnan(nats) else math.exp(nats)
    return "█" * round(BAR * share) + f" {share:.3f}"


def _show_comparison(found: Comparison, other: str, console: Console) -> None:
    readings = [
        *((f"Δ {name} [nats]", value) for name, value in found.delta_nats.items()),
        *((f"Δ {name} [clr, nats]", value) for name, value in found.delta_clr.items()),
        ("Δ persona log-odds [nats/token]", found.delta_logodds),
        ("Δ answer mass", found.delta_p_ans_any),
        ("Δ ln perplexity of free answers", found.delta_perplexity),
        ("Δ top-1", found.delta_top1),
        ("Δ share of 'not wrong'", found.delta_social),
        ("gated selectivity", found.gated_selectivity),
        ("SI flips", found.si_flips),
        ("coherence cost per nat", found.coh_cost),
    ]
    rows = [
        (name, shown(value), "moved" if value.moved else value.reason or "not moved")
        for name, value in readings
    ]
    surgical = {True: "yes", False: "no", None: "the target has not moved"}[found.surgical]
    console.table(f"against {other} · {found.n} pairs", ("reading", "value", ""), rows)
    console.say(f"surgical: {surgical}")
