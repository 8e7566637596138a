"""A comparison's record as the content of a paper."""

import math
from functools import partial

from steerheal.config import merge
from steerheal.measure.readings.table import listed
from steerheal.records.comparing import ArmRecord, CompareRecord, Contrast
from steerheal.report import compare
from steerheal.report.frontier import contrasts, figure
from steerheal.report.paper.content import Content, Picture, amount
from steerheal.report.paper.method import (
    UNDOSED,
    Setting,
    heal_uses,
    healing_words,
    judge_words,
    model_words,
    steering_words,
)
from steerheal.report.paper.prose import Prose, cite
from steerheal.report.table import Table
from steerheal.report.words import at, one_line

TAUGHT = ("trained", "epochs")
"""Kinds of arm that train on their teacher's text."""


def content(record: CompareRecord) -> Content:
    """All that the paper says, by rules that do not know which arm did best."""
    primary, best = compare.primary_words(record), compare.best_words(record)
    model = record.environment.get("model", "a language model")
    return Content(
        title=f"Ways to the persona {at(record.persona, 'name')} in {model}, at equal damage and "
        "at equal KL",
        abstract=f"{primary} {best}",
        introduction=_introduction(record),
        method=_method(record),
        equation=any(map(_trains, record.arms)),
        findings=[primary, best],
        told=_told(record),
        limitations=_limits(record),
        pictures=[
            Picture("frontier", partial(figure, record), _caption(record)),
            Picture("contrasts", partial(contrasts, record), _contrasts_caption(record)),
        ],
        tables=_tables(record),
    )


def _introduction(record: CompareRecord) -> list[Prose]:
    ours, against = record.settings.ours, record.settings.against
    return [
        [
            "A trait can be given to a language model by a system prompt, by a vector that is "
            "added to its hidden states, or by training. Each costs coherence, so that two of them "
            "can only be held against each other where they cost the same. Here every way is one "
            "arm of a comparison and is read along its whole curve, from the base on. Written down "
            f"before anything was read: the primary comparison is {against} against {ours}.",
        ]
    ]


def _method(record: CompareRecord) -> list[Prose]:
    config = record.config
    words: list[Prose] = [model_words(config, record.environment, record.persona)]
    if any(_steers(record, arm) for arm in record.arms):
        words.append(steering_words(config))
    if any(map(_trains, record.arms)):
        words += healing_words(config)
    words += [_arms_words(record), _comparison_words(record)]
    return [
        part
        for part in (*words, judge_words(record.judge if record.status == "finished" else None))
        if part
    ]


def _trains(arm: ArmRecord) -> bool:
    return arm.along in ("gate", "epochs")


def _steers(record: CompareRecord, arm: ArmRecord) -> bool:
    """Whether it writes or reads under a vector."""
    teacher = at(arm.arm.settings, "teacher") or at(record.config, "teacher")
    return arm.along == "dose" or (arm.arm.kind in TAUGHT and teacher not in UNDOSED)


def _arms_words(record: CompareRecord) -> Prose:
    """Every arm: what it is, and what it changes of the settings above."""
    found: list = ["The arms, each with the settings above unless it says otherwise: "]
    for place, arm in enumerate(record.arms):
        found += [f"{'; ' if place else ''}{arm.arm.name}, {arm.says}", cite(*_uses(record, arm))]
        if changed := _flat(arm.arm.settings):
            found.append(f" ({', '.join(f'{name} = {value}' for name, value in changed.items())})")
    return [*found, "."]


def _uses(record: CompareRecord, arm: ArmRecord) -> list[str]:
    """What an arm uses besides what all use: its kind, and what its own settings name."""
    uses = [f"arm {arm.arm.kind}"]
    if not arm.arm.settings:
        return uses
    config = record.config if isinstance(record.config, dict) else record.config.model_dump()
    have = Setting(merge(config, arm.arm.settings))
    if _steers(record, arm):
        uses.append(f"method {have('vector.method')}")
    if _trains(arm):
        uses += [f"objective {have('heal.objective')}", f"adapter {have('heal.adapter')}"]
        uses += heal_uses(have)
    if arm.arm.kind in TAUGHT:
        uses.append(f"teacher {have('teacher')}")
    return uses


def _flat(settings: object, path: str = "") -> dict[str, object]:
    """Nested settings by their dotted names."""
    if not isinstance(settings, dict):
        return {path: settings}
    found: dict[str, object] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{path}.{name}".lstrip("."))
    return found


def _comparison_words(record: CompareRecord) -> Prose:
    asked = record.settings
    trait, damage = compare.entry(asked.trait), compare.entry(asked.damage)
    names = dict.fromkeys(n for a in record.arms for p in a.points for n in p.read.values)
    titles = ", ".join(entry.title for entry in listed(names))
    return [
        f"The trait is {trait.title} ({trait.unit}). Arms are made equal at damage, which is "
        f"{damage.title}, and at KL to the base on a state's own answers. An arm is a line from "
        "the base through the means of its points, linear in the root of what is made equal; two "
        "arms differ by the mean over eight equal steps of that root, up to where the shorter one "
        f"ends. Intervals are at 95 %, over {asked.seeds} seeds and the prompts together",
        cite("statistics seeds"),
        "; p-values are two-sided, by Holm's steps over all arms at one equality",
        cite("statistics holm"),
        ". Vignettes are read by the instrument "
        f"{record.instrument or 'that the record does not name'}",
        cite(f"instrument {record.instrument}", "reading foundations"),
        f". Read of every arm: {titles}.",
    ]


def _told(record: CompareRecord) -> list[str]:
    """Every arm less ours, at both equalities, in the order in which the arms are listed."""
    unit = compare.entry(record.settings.trait).difference_unit
    return [
        _of_contrast(found, unit)
        for arm in record.arms
        for where in ("damage", "KL")
        if (found := record.contrast(arm.arm.name, where)) is not None
    ]


def _of_contrast(found: Contrast, unit: str) -> str:
    what = f"{found.arm} less {found.ours} at equal {found.at}"
    if math.isnan(found.reading.value):
        return f"{what} is unknown: {one_line(found.reading.reason) or 'no reason was recorded'}."
    said = compare.verdict(found, found.adjusted)
    return f"{what} is {amount(found.reading, unit)}; by Holm's steps {said}."


def _limits(record: CompareRecord) -> list[str]:
    said = [
        "One model and one persona: nothing here says how another would do.",
        "An arm's settings are those of the method section and were not searched for: each could "
        "do better with others.",
        *compare.notes_of(record),
    ]
    return [one_line(text) + "." for text in said]


def _caption(record: CompareRecord) -> str:
    return (
        "Trait against damage and against KL to the base, an arm a line from the base (star). "
        f"Further up is more of the trait, further right more damage. Bars are 95 % intervals. "
        f"{compare.primary_words(record)}"
    )


def _contrasts_caption(record: CompareRecord) -> str:
    return (
        f"Every arm less {record.settings.ours}, over the curves as far as both go. Bars are 95 % "
        "intervals over seeds and prompts, not corrected for the number of arms, and cut at the "
        f"figure's edge; one that crosses the dotted line cannot be told apart. "
        f"{compare.best_words(record)}"
    )


def _tables(record: CompareRecord) -> dict[str, Table]:
    found = {
        "arms": compare.main_table(record),
        "readings": compare.readings_table(record),
        "curves": compare.curves_table(record),
        "foundations": compare.foundations_table(record),
        "persistence": compare.persisted_table(record),
    }
    return {name: item for name, item in found.items() if item.rows}
