"""How `steerheal evaluate` reads: as a run was read, or as the options say; and what need not be.

A run's own readings of its base are taken where they hold everything that is asked for.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from steerheal.cli import EvaluateCommand, ReadCommand
from steerheal.code import made_by
from steerheal.config import PRESETS, MeasureSettings, RunConfig, SamplingSettings, validated
from steerheal.errors import UserError
from steerheal.line import flag_of
from steerheal.measure import vignettes
from steerheal.personas import Persona
from steerheal.prompts import lines
from steerheal.records import RunRecord, Scores, StageMark
from steerheal.store import read_run, read_scores

if TYPE_CHECKING:
    from steerheal.models.model import ChatModel

FEWER = ("per_foundation", "prompts", "long_prompts", "json_prompts")
"""Settings of an evaluation that only say how many: fewer are the first of more."""
QUICK = {name: value for name, value in PRESETS["quick"]["measure"].items() if name != "instrument"}


class Asked(NamedTuple):
    """How a target is read."""

    measure: MeasureSettings
    sampling: SamplingSettings
    seed: int
    how: str
    """In words."""


def refuse_unused(options: EvaluateCommand) -> None:
    """What a saved reading, a run, or a run compared with has settled already.

    Raises:
        UserError: an option that would do nothing.
    """
    given = options.model_fields_set
    reading = (ReadCommand.model_fields.keys() | EvaluateCommand.model_fields.keys()) & {
        *MeasureSettings.model_fields,
        "quick",
    }
    why: dict[str, set[str]] = {}
    if options.target is not None and options.target.is_file():
        why["the target is a saved reading"] = given - {"target", "against", "json_out"}
    elif is_run(options.target):
        why["the target is a run, which has its own"] = given & {
            *("model", "template", "template_vars", "date", "persona")
        }
    if is_run(options.against):
        why["a target is read as the run that it is held against was"] = given & reading
    for reason, names in why.items():
        if names:
            flags = ", ".join(flag_of(EvaluateCommand, (name,)) for name in sorted(names))
            raise UserError(f"Without effect: {flags}, since {reason}. Leave it out.")


def is_run(path: Path | None) -> bool:
    """Whether it is a run's folder."""
    return path is not None and (path / "run.json").is_file()


def asked(options: EvaluateCommand, persona: Persona) -> Asked:
    """How to read: as the run was that is the target, or that it is held against, or as default.

    What was typed wins, and is named.

    Raises:
        UserError: more of something than there is.
    """
    run = _run_of(options)
    if run is None:
        config, source = RunConfig(), "read with the command's own settings"
        most = min(config.measure.prompts, len(persona.prompts.evaluate))
        measure = config.measure.model_copy(update={"prompts": most})
    else:
        config = validated(RunConfig, read_run(run).config, source=str(run))
        measure, source = config.measure, f"read as {run} was"
    changes = _changes(options, measure)
    measure = validated(MeasureSettings, measure.model_dump() | changes, source="evaluate")
    if measure.prompts > len(persona.prompts.evaluate):
        raise UserError(
            f"--prompts: given {measure.prompts}; persona {persona.name} has "
            f"{len(persona.prompts.evaluate)} evaluation prompts."
        )
    typed = {**changes, **({"seed": options.seed} if "seed" in options.model_fields_set else {})}
    seed = typed.get("seed", config.seed)
    but = " ".join(f"--{name.replace('_', '-')} {_word(value)}" for name, value in typed.items())
    return Asked(measure, config.sampling, seed, f"{source}{', but ' if but else ''}{but}")


def _run_of(options: EvaluateCommand) -> Path | None:
    for path in (options.against, options.target):
        if is_run(path):
            return path
    return None


def _changes(options: EvaluateCommand, own: MeasureSettings) -> dict[str, object]:
    """Settings that the line reads otherwise."""
    typed = options.model_fields_set & MeasureSettings.model_fields.keys()
    changes = {
        name: getattr(options, name) for name in MeasureSettings.model_fields if name in typed
    }
    if options.quick:
        for name, value in QUICK.items():
            mine = getattr(own, name)
            if name not in typed and (mine > value or (name == "per_foundation" and mine == 0)):
                changes[name] = value
    return changes


def _word(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def kept_base(
    folder: Path, record: RunRecord, chat: "ChatModel", ask: Asked, persona: Persona
) -> Scores | None:
    """A run's own readings of its base, cut to what is asked; None where they do not hold it.

    They hold it if everything but the numbers in `FEWER` is the same, the vignettes and their
    wording are the package's own, and code, libraries and precision are those of the run.
    """
    config = validated(RunConfig, record.config, source=str(folder))
    own, want = config.measure, ask.measure
    try:
        base = read_scores(folder, -1, "base")
    except UserError:
        return None
    if not (
        _same_but_fewer(own, want, base.instrument)
        and (config.sampling, config.seed) == (ask.sampling, ask.seed)
        and not want.protocol
        and want.vignettes in vignettes.BUNDLED
        and any(_made_by_this(mark) for mark in record.stages)
        and record.environment.get("dtype") == str(chat.net.dtype).removeprefix("torch.")
        and record.environment.get("device") == str(chat.device)
    ):
        return None
    return _cut(base, want, persona)


def _made_by_this(mark: StageMark) -> bool:
    """Whether a stage is the base's readings, made by this very code and these libraries."""
    return mark.name == "evaluate-base" and mark.key.endswith(f"-{made_by('evaluate')}")


def _same_but_fewer(own: MeasureSettings, want: MeasureSettings, instrument: str) -> bool:
    few = set(FEWER)
    if want.instrument not in ("auto", instrument) or own.instrument not in ("auto", instrument):
        return False
    if own.model_dump(exclude=few | {"instrument"}) != want.model_dump(
        exclude=few | {"instrument"}
    ):
        return False
    # 0 vignettes per foundation are all of them.
    counts = [(getattr(own, n), getattr(want, n)) for n in FEWER if n != "per_foundation"]
    mine, asked_for = own.per_foundation, want.per_foundation
    return all(o >= w for o, w in counts) and (mine == 0 or 0 < asked_for <= mine)


def _cut(base: Scores, want: MeasureSettings, persona: Persona) -> Scores | None:
    rows = {(row.id, row.condition): row for row in base.vignettes}
    keys = [(vignette.id, vignette.condition) for vignette in vignettes.chosen(want)]
    answers = {row.completion.prompt: row for row in base.persona}
    asked_for = persona.prompts.evaluate[: want.prompts]
    essays = min(want.long_prompts, len(lines("open")))
    replies = min(want.json_prompts, len(lines("json")))
    if not (rows.keys() >= set(keys) and answers.keys() >= set(asked_for)):
        return None
    if len(keys) < len(rows) and (base.position_bias or base.closed_early):
        return None  # what was read over all vignettes at once is not that of a part of them
    if len(base.long) < essays or len(base.json_replies) < replies:
        return None
    return base.model_copy(
        update={
            "vignettes": tuple(rows[key] for key in keys),
            "persona": tuple(answers[prompt] for prompt in asked_for),
            "long": base.long[:essays],
            "json_replies": base.json_replies[:replies],
        }
    )
