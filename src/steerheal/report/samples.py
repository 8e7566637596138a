"""The texts of the report, read from a run folder: the diary, and what the filter let through.

Nothing is picked by hand: show prompts are fixed in advance, borderline samples follow a rule.
A file that is missing or unreadable becomes a sentence.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from steerheal import store
from steerheal.numbers import number
from steerheal.records import (
    Calibration,
    Completion,
    Harvest,
    Judged,
    RoundRecord,
    RunRecord,
    Shown,
    WalkStep,
)
from steerheal.report.files import attempt
from steerheal.report.table import Cell, Table, plain, survival
from steerheal.report.words import chosen

BORDERLINE = 3


class Line(NamedTuple):
    """One state's answer to a show prompt."""

    label: str
    kind: str
    """base, steered or healed."""
    text: str
    ended: bool
    as_base: bool
    """The same text as the base's."""
    on_paper: bool
    """Whether it is printed: the base, the first steered state and the chosen round are."""


class Entry(NamedTuple):
    """A show prompt and the answers to it."""

    prompt: str
    lines: list[Line]


class Diary(NamedTuple):
    """The show prompts, each answered by every state."""

    entries: list[Entry]
    missing: list[str]
    """Sentences: which state's answers are not there, and why."""


class Sample(NamedTuple):
    """A completion on the filter's edge."""

    kept: bool
    prompt: str
    text: str
    dose: str
    perplexity: str
    reasons: str


class Filtered(NamedTuple):
    """What the filter did in a round."""

    round: int
    title: str
    limit: str
    reasons: Table
    walk: Table
    limits: Table
    """What the limits cost the base's own text; no rows where that was not recorded."""
    samples: list[Sample]
    missing: str


def shown_differs(folder: Path, record: RunRecord) -> tuple[int, int] | None:
    """How many of how many show prompts the chosen round answers unlike the base."""
    row = chosen(record)
    base = attempt(folder, lambda: store.read_shown(folder, -1, "base"))
    if row is None or isinstance(base, str):
        return None
    healed = attempt(folder, lambda: store.read_shown(folder, row.round, "healed"))
    if isinstance(healed, str):
        return None
    before, after = _texts(base), _texts(healed)
    both = before.keys() & after.keys()
    return sum(before[prompt].text != after[prompt].text for prompt in both), len(both)


def _texts(shown: Shown) -> dict[str, Completion]:
    return {completion.prompt: completion for completion in shown.completions}


def diary(folder: Path, record: RunRecord) -> Diary:
    """Every show prompt with the answers of the base, the first steered state, and each heal."""
    wanted = [(-1, "base", "base")]
    if any(row.round == 0 and row.drawn for row in record.rounds):
        wanted.append((0, "steered", "round 1 steered, raw"))
    wanted += [
        (row.round, "healed", f"round {row.round + 1} healed")
        for row in record.rounds
        if row.outcome == "folded"
    ]
    best = chosen(record)
    answers: dict[str, list[Line]] = {}
    base: dict[str, Completion] = {}
    missing: list[str] = []
    for number_of, state, label in wanted:
        shown = attempt(folder, lambda n=number_of, s=state: store.read_shown(folder, n, s))
        if isinstance(shown, str):
            missing.append(f"{label}: {shown}")
            continue
        base = _texts(shown) if state == "base" else base
        for item in shown.completions:
            same = state != "base" and item.prompt in base and base[item.prompt].text == item.text
            paper = state != "healed" or (best is not None and best.round == number_of)
            line = Line(label, state, item.text, item.ended, same, paper)
            answers.setdefault(item.prompt, []).append(line)
    return Diary([Entry(prompt, lines) for prompt, lines in answers.items()], missing)


def filtered(folder: Path, record: RunRecord) -> list[Filtered]:
    """The filter's work per round, from the harvest on disk, else from the run's record."""
    rows = {row.round: row for row in record.rounds}
    ahead = max(rows, default=-1) + 1
    if (store.round_folder(folder, ahead) / "harvest.json").is_file():
        return [_filtered(folder, n, rows.get(n)) for n in [*rows, ahead]]
    return [_filtered(folder, n, rows[n]) for n in rows]


def _filtered(folder: Path, number_of: int, row: RoundRecord | None) -> Filtered:
    title = f"Round {number_of + 1}" + ("" if row else " (unfinished)")
    harvest = attempt(folder, lambda: store.read_harvest(folder, number_of))
    if isinstance(harvest, Harvest):
        walk, reasons, samples, missing = harvest.walk, harvest.reasons(), borderline(harvest), ""
        limit = number(harvest.perplexity_limit)
    else:
        walk, reasons = (row.walk, row.reasons) if row else ((), {})
        samples, missing, limit = [], harvest, ""
    calibration = harvest.calibration if isinstance(harvest, Harvest) else None
    tables = _reasons_table(reasons), _walk_table(walk), _limits_table(calibration)
    return Filtered(number_of, title, limit, *tables, samples, missing)


def _reasons_table(reasons: dict[str, int]) -> Table:
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    rows = [[Cell(reason), Cell(str(count))] for reason, count in ordered]
    return Table(
        "Completions dropped, by reason; one may have several",
        [Cell("reason"), Cell("completions")],
        rows,
    )


def _limits_table(calibration: Calibration | None) -> Table:
    """What each rule drops of the base's own text: fresh, and that which set the limits."""
    heads = [Cell("rule"), Cell("fresh text", "share"), Cell("set at", "share")]
    heads += [Cell("the texts that set it", "share")]
    title = "What the filter drops of the base's own unsteered text"
    if calibration is None or not calibration.fresh:
        return Table(title, heads, [])
    fresh, inside, set_at = calibration.fresh, calibration.dropped, calibration.expected
    few = f"{calibration.texts} texts are too few for the share that was asked"
    rows = [
        [
            Cell(name),
            plain(fresh.get(name, 0.0)),
            plain(set_at.get(name, math.nan), "not set by a share")
            if name not in calibration.too_few
            else Cell(number(set_at[name]), why=few),
            plain(inside.get(name, 0.0)),
        ]
        for name in dict.fromkeys([*fresh, *inside])
    ]
    return Table(title, heads, rows)


def _walk_table(walk: Sequence[WalkStep]) -> Table:
    heads = [Cell("dose", "of the vector"), Cell("drawn"), Cell("kept")]
    rows = [
        [
            plain(step.multiplier),
            Cell(str(step.drawn)),
            Cell(str(step.kept)),
            Cell(survival(step)),
        ]
        for step in walk
    ]
    return Table(
        "What survived at each step of the walk", [*heads, Cell("survival", "share")], rows
    )


def borderline(harvest: Harvest) -> list[Sample]:
    """The kept of highest tail perplexity, and the dropped ones nearest to the limit."""
    limit = harvest.perplexity_limit
    kept = [row for row in harvest.judged if row.verdict.kept]
    kept.sort(key=lambda row: _known(-row.verdict.tail_perplexity))
    dropped = [row for row in harvest.judged if not row.verdict.kept]
    dropped.sort(key=lambda row: _known(abs(row.verdict.tail_perplexity - limit)))
    return [_sample(row) for row in [*kept[:BORDERLINE], *dropped[:BORDERLINE]]]


def _known(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _sample(row: Judged) -> Sample:
    return Sample(
        kept=row.verdict.kept,
        prompt=row.completion.prompt,
        text=row.completion.text,
        dose=number(row.completion.dose),
        perplexity=number(row.verdict.tail_perplexity),
        reasons=", ".join(row.verdict.reasons),
    )
