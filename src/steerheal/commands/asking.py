"""How `steerheal evaluate` reads: as a run was read, or as the options say; and what need not be.

A run's own readings of its base are taken where they hold everything that is asked for.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from steerheal.code import key_of
from steerheal.config import (
    PRESETS,
    FilterSettings,
    MeasureSettings,
    RunConfig,
    SamplingSettings,
    validated,
)
from steerheal.errors import UserError
from steerheal.measure import vignettes
from steerheal.personas import Persona
from steerheal.prompts import lines
from steerheal.records import RunRecord, Scores, StageMark
from steerheal.store import RUN, read_run, read_scores

if TYPE_CHECKING:
    from steerheal.models.model import ChatModel

FEWER = ("per_foundation", "statements", "prompts", "long_prompts", "json_prompts")
"""Settings of an evaluation that only say how many: fewer are the first of more."""
QUICK = {name: value for name, value in PRESETS["quick"]["measure"].items() if name != "instrument"}


class Asked(NamedTuple):
    """How a target is read."""

    measure: MeasureSettings
    sampling: SamplingSettings
    seed: int
    how: str
    """In words."""
    filter: FilterSettings = FilterSettings()
    """Whose rules tell coherent answers."""


def is_run(path: Path | None) -> bool:
    """Whether it is a run's folder."""
    return path is not None and (path / RUN).is_file()


def asked(persona: Persona, like: Path | None, typed: Mapping[str, Any], *, quick: bool) -> Asked:
    """How to read: as a run was read, or as default; what was typed wins, and is named.

    Args:
        persona: Whose prompts are answered.
        like: The run's folder.
        typed: Settings of the reading, and the seed, that the line gives.
        quick: Read no more than preset quick does.

    Raises:
        UserError: more of something than there is.
    """
    if like is None:
        config, source = RunConfig(), "read with the command's own settings"
        most = min(config.measure.prompts, len(persona.prompts.evaluate))
        measure = config.measure.model_copy(update={"prompts": most})
    else:
        config = read_run(like).settings(like)
        measure, source = config.measure, f"read as {like} was"
    changes = {name: typed[name] for name in MeasureSettings.model_fields if name in typed}
    changes |= _fewer(measure, typed) if quick else {}
    measure = validated(MeasureSettings, measure.model_dump() | changes, source="evaluate")
    if measure.prompts > len(persona.prompts.evaluate):
        raise UserError(
            f"--prompts: given {measure.prompts}; persona {persona.name} has "
            f"{len(persona.prompts.evaluate)} evaluation prompts."
        )
    seed = {"seed": typed["seed"]} if "seed" in typed else {}
    but = " ".join(
        f"--{name.replace('_', '-')} {_word(value)}" for name, value in {**changes, **seed}.items()
    )
    how = f"{source}{', but ' if but else ''}{but}"
    return Asked(measure, config.sampling, seed.get("seed", config.seed), how, config.filter)


def _fewer(own: MeasureSettings, typed: Mapping[str, Any]) -> dict[str, object]:
    """What preset quick reads less of than these settings, unless it was typed."""
    return {
        name: value
        for name, value in QUICK.items()
        if name not in typed
        and (getattr(own, name) > value or (name == "per_foundation" and own.per_foundation == 0))
    }


def _word(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def kept_base(
    folder: Path,
    record: RunRecord,
    chat: "ChatModel",
    ask: Asked,
    persona: Persona,
    *,
    code: str,
) -> Scores | None:
    """A run's own readings of its base, cut to what is asked; None where they do not hold it.

    They hold it if everything but the numbers in `FEWER` is the same, the vignettes and their
    wording are the package's own, the readings that bring rows of their own are those of the run,
    and so are code, libraries and precision. `code` is the digest of what reads here.
    """
    from steerheal.measure.instruments import texts

    config = record.settings(folder)
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
        and record.environment.get("texts") == key_of(texts(own))
        and any(_made_by(code, mark) for mark in record.stages)
        and record.environment.get("dtype") == str(chat.net.dtype).removeprefix("torch.")
        and record.environment.get("device") == str(chat.device)
    ):
        return None
    return _cut(base, want, persona)


def _made_by(code: str, mark: StageMark) -> bool:
    """Whether a stage is the base's readings, made by this very code and these libraries."""
    return mark.name == "evaluate-base" and mark.key.endswith(f"-{code}")


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
    left = answers.keys() - set(asked_for)
    own = {
        name: tuple(row for row in found if row.id not in left) for name, found in base.own.items()
    }
    return base.model_copy(
        update={
            "own": own,
            "vignettes": tuple(rows[key] for key in keys),
            "canary": base.canary[: want.statements],
            "persona": tuple(answers[prompt] for prompt in asked_for),
            "long": base.long[:essays],
            "json_replies": base.json_replies[:replies],
        }
    )
