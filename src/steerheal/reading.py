"""`steerheal evaluate`: reads a target with the chosen instrument, saves, shows and compares it."""

import math
from pathlib import Path
from typing import NamedTuple

from steerheal.cli import EvaluateCommand, ReadCommand
from steerheal.config import (
    MeasureSettings,
    ModelSettings,
    RunConfig,
    SamplingSettings,
    validated,
)
from steerheal.console import Console, shown
from steerheal.errors import UserError
from steerheal.history import round_of, student_of
from steerheal.measure import guards, summary
from steerheal.measure.auto import resolve
from steerheal.measure.compare import compare
from steerheal.measure.evaluate import evaluate as evaluate_state
from steerheal.measure.evaluate import size
from steerheal.measure.qualify import in_words, qualify
from steerheal.models.load import load
from steerheal.models.model import ChatModel
from steerheal.records import FOUNDATIONS, Comparison, Evaluation, Reading, Scores
from steerheal.stages import Student
from steerheal.state.adapter import Adapter
from steerheal.state.fold import Gated, folded
from steerheal.steer.persona import Persona, find
from steerheal.store import read_record, read_run, read_scores, write_record

BAR = 24
"""Width of the figure's bars, in characters."""


class Target(NamedTuple):
    """What is read: a model with a history, and whose axis matters."""

    chat: ChatModel
    history: tuple[Gated, ...]
    persona: Persona
    name: str


def evaluate(options: EvaluateCommand, console: Console) -> None:
    """`steerheal evaluate`."""
    _refuse_unused(options)
    other = None if options.against is None else _saved(options.against, console)
    if options.target is not None and options.target.suffix == ".json":
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


def _refuse_unused(options: EvaluateCommand) -> None:
    """What a saved reading, a run, or a run compared with has settled already."""
    plain = EvaluateCommand()
    given = {name for name, value in options if value != getattr(plain, name)}
    reading = {*ReadCommand.model_fields} - {"model", "seed"}
    why: dict[str, set[str]] = {}
    if options.target is not None and options.target.suffix == ".json":
        why["the target is a saved reading"] = given - {"target", "against", "json_out"}
    elif _is_run(options.target):
        why["the target is a run, which has its own"] = given & {"model", "persona"}
    if _is_run(options.against):
        why["a target is read as the run that it is held against was"] = given & reading
    for reason, names in why.items():
        if names:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(names))
            raise UserError(f"Without effect: {flags}, since {reason}. Leave it out.")


def _is_run(path: Path | None) -> bool:
    return path is not None and (path / "run.json").is_file()


def _asked(options: EvaluateCommand, persona: Persona) -> tuple[MeasureSettings, SamplingSettings]:
    """How to read: as the run that the target is held against, else as the options say."""
    if options.against is not None and _is_run(options.against):
        config = validated(RunConfig, read_run(options.against).config, source=str(options.against))
        return config.measure, config.sampling
    most = min(MeasureSettings().prompts, len(persona.prompts.evaluate))
    return options.measure(prompts=most), SamplingSettings()


def _read(options: EvaluateCommand, console: Console) -> Evaluation:
    target = _target(options, console)
    chat, history, persona, name = target
    settings, sampling = _asked(options, persona)
    for guard in options.guard:
        guards.known(guard)
    settings, tried = resolve(chat, settings, persona.axis)
    for attempt in tried:
        console.note(in_words(attempt))
    states: dict[str, Scores] = {}
    for state, items in (("base", ()), ("healed", history)):
        if state == "healed" and not history:
            continue
        with console.stage(f"reading {state}", size(settings, persona)) as progress:
            states[state] = evaluate_state(
                chat,
                state,
                Student(chat, items).entered,
                persona,
                settings,
                sampling=sampling,
                seed=options.seed,
                progress=progress,
            )
    base, last = states["base"], states.get("healed", states["base"])
    console.note(in_words(qualify(base, persona.axis)))
    outside: dict[str, float] = {}
    with folded(chat, history):
        for guard in options.guard:
            outside |= guards.read(chat, guard)
    return Evaluation(
        target=name,
        model=chat.name,
        dtype=str(chat.net.dtype).removeprefix("torch."),
        persona=persona.model_dump(mode="json"),
        instrument=last.instrument,
        think=last.think,
        aggregates=summary.summarise(last, base, persona.axis),
        guards=outside,
        rows=last.vignettes,
        others=last.model_copy(update={"vignettes": ()}),
    )


def _target(options: EvaluateCommand, console: Console) -> Target:
    where = options.target
    if where is not None and _is_run(where):
        record = read_run(where)
        chat, history, number = student_of(record, where, options.round, options.gate, console)
        persona = Persona.model_validate(record.persona)
        return Target(chat, history, persona, f"{where} round {number}, gate {options.gate:g}")
    persona = find(options.persona)
    adapter = None if where is None else Gated(Adapter.load(where), options.gate)
    chat = load(ModelSettings(name=options.model))
    if adapter is None:
        return Target(chat, (), persona, chat.name)
    return Target(chat, (adapter,), persona, f"{where} on {chat.name}")


def _saved(path: Path, console: Console) -> Scores:
    """Readings to compare with, from a file or a run's best round."""
    if path.suffix == ".json":
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
