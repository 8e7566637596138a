"""A comparison as tables of text and as one self-contained page. Reads its record, no model.

Nothing in it depends on which arm did best: what is primary, the order of the rows' reading and the
prompts that are shown were fixed before.
"""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from steerheal import disk
from steerheal.measure.readings.table import Entry, listed
from steerheal.numbers import number, shown
from steerheal.records import FOUNDATIONS, Completion
from steerheal.records.comparing import ArmPoint, ArmRecord, CompareRecord, Contrast
from steerheal.report import draw, theme
from steerheal.report.frontier import figure
from steerheal.report.rendering import rendered
from steerheal.report.table import Cell, Table, plain, reading
from steerheal.report.words import at

MEMORY = "memory"
PAGE, FIGURE, TABLE = "report.html", "frontier", "compare.md"
LEVEL = 0.05


class Said(NamedTuple):
    """A show prompt and what every arm answers."""

    prompt: str
    lines: list[tuple[str, Completion]]


def ordered(record: CompareRecord) -> list[ArmRecord]:
    """The arms by the primary comparison, the most trait beyond ours first; unknown ones last."""

    def place(arm: ArmRecord) -> tuple[bool, float]:
        if arm.arm.name == record.settings.ours:
            return False, 0.0
        found = record.contrast(arm.arm.name, "damage")
        if found is None or math.isnan(found.reading.value):
            return True, 0.0
        return False, -found.reading.value

    return sorted(record.arms, key=place)


def entry(name: str) -> Entry:
    """A reading of the table."""
    return listed([name])[0]


def primary_words(record: CompareRecord) -> str:
    """The comparison that was named before the run, in one sentence."""
    asked, found = record.settings, record.primary
    trait, damage = entry(asked.trait), entry(asked.damage)
    what = f"{asked.against} less {asked.ours} in {trait.title} at equal damage ({damage.title})"
    if found is None or math.isnan(found.reading.value):
        why = "not made yet" if found is None else found.reading.reason
        return f"Primary, named before the run: {what} is unknown: {why}."
    unit = trait.difference_unit
    return (
        f"Primary, named before the run: {what} is {shown(found.reading)} {unit}: "
        f"{verdict(found, found.p)}."
    )


def verdict(found: Contrast, p: float) -> str:
    """Which of the two has more of the trait, if it can be told."""
    if math.isnan(p):
        return "nothing can be told without an interval"
    if p >= LEVEL:
        return f"they cannot be told apart (p = {number(p)})"
    more, less = (found.arm, found.ours) if found.reading.value > 0 else (found.ours, found.arm)
    return f"{more} has more of the trait than {less} (p = {number(p)})"


def best_words(record: CompareRecord) -> str:
    """What the other comparisons say together, and how many there are."""
    family = [c for c in record.contrasts if c.at == "damage" and not math.isnan(c.adjusted)]
    better = [c.arm for c in family if c.adjusted < LEVEL and c.reading.value > 0]
    worse = [c.arm for c in family if c.adjusted < LEVEL and c.reading.value < 0]
    ours = record.settings.ours
    said = [
        f"{', '.join(better)} {'have' if len(better) > 1 else 'has'} more" if better else "",
        f"{', '.join(worse)} {'have' if len(worse) > 1 else 'has'} less" if worse else "",
    ]
    told = "; ".join(part for part in said if part) or "no arm can be told apart from it"
    return (
        f"At equal damage, after Holm's correction over {len(family)} arms against {ours}: {told}. "
        f"{record.compared} comparisons were made, at equal damage and at equal KL."
    )


def notes_of(record: CompareRecord) -> list[str]:
    """What a reader must know of the instruments, the seeds and the arms that are not there."""
    found = list(record.notes)
    if record.judge is not None:
        sees = any(entry(name).judged for name in record.sees)
        found.append(f"{record.judge.words()}.{' It sees damage here.' if sees else ''}")
    titles = {name: entry(name).title for name in (*record.sees, *record.blind)}
    if record.blind:
        listed_blind = ", ".join(titles[name] for name in record.blind)
        found.append(
            f"Blind to damage on this model, and no evidence of coherence: {listed_blind}."
        )
    if record.settings.damage in record.blind:
        title = entry(record.settings.damage).title
        found.append(
            f"{title} is what arms are made equal at and shows no damage here: read them at "
            "equal KL."
        )
    if record.settings.seeds < 3:
        found.append(
            f"Seeds: {record.settings.seeds}. With so few only large differences can be told, and "
            "an interval at one seed says nothing of others."
        )
    found += [
        f"{arm.arm.name} is missing at seed {seed}: {why}"
        for arm in record.arms
        for seed, why in arm.unmade.items()
    ]
    return found


def main_table(record: CompareRecord) -> Table:
    """Every arm less ours, and its own curve's end, sorted by the primary comparison."""
    asked = record.settings
    trait, damage = entry(asked.trait), entry(asked.damage)
    heads = [
        Cell("arm"),
        Cell("less ours at equal damage", trait.difference_unit),
        Cell("p", "Holm"),
        Cell("less ours at equal KL", trait.difference_unit),
        Cell("point", "gate, dose, β or epochs"),
        Cell("trait", f"Δ, {trait.difference_unit}"),
        Cell("damage", f"Δ {damage.title}"),
        Cell("KL", "nats/token"),
        Cell("η", "Δtrait/√(2·KL)"),
    ]
    rows = []
    for arm in ordered(record):
        ours = arm.arm.name == asked.ours
        same, kl = (record.contrast(arm.arm.name, at_) for at_ in ("damage", "KL"))
        last = arm.curve[-1] if arm.curve else None
        held = [_against(same, ours), _p(same), _against(kl, ours)]
        if last is None:
            why = next(iter(arm.unmade.values()), "not read at every seed")
            rest = [Cell("–", why=why)] * 5
        else:
            point = Cell(number(last.at) if arm.along else "–")
            rest = [point, *(reading(r, signed=True) for r in (last.trait, last.damage)),
                    reading(last.kl), reading(last.eta, signed=True)]  # fmt: skip
        rows.append([Cell(arm.arm.name, "ours" if ours else ""), *held, *rest])
    return Table("Every arm, by the primary comparison", heads, rows)


def _against(found: Contrast | None, ours: bool) -> Cell:
    if ours:
        return Cell("0", "itself")
    return (
        Cell("–", why="the base is where every curve begins")
        if found is None
        else reading(found.reading, signed=True)
    )


def _p(found: Contrast | None) -> Cell:
    if found is None or math.isnan(found.adjusted):
        return Cell("")
    return Cell(number(found.adjusted))


def readings_table(record: CompareRecord) -> Table:
    """Every brief reading at the end of every arm's curve, mean over seeds, and what it took."""
    names = dict.fromkeys(
        name for arm in record.arms for point in arm.points for name in point.read.values
    )
    acts = any(point.read.led_by_foundation for arm in record.arms for point in arm.points)
    brief = [item for item in listed(names) if item.brief and (acts or not _of_acts(item))]
    heads = [Cell("arm"), *(Cell(item.title, _unit(item)) for item in brief)]
    took = [("tokens", "sampled and trained on", 1.0), ("seconds", "to make it", 1.0)]
    if any(spent.memory for arm in record.arms for spent in arm.spent):
        took.append((MEMORY, "GB at most, weights included", 1e9))
    serves = any(point.fisher for arm in record.arms for point in arm.points)
    heads += [Cell(name, unit) for name, unit, _ in SERVES] if serves else []
    heads += [Cell(name, unit) for name, unit, _ in took]
    rows = []
    for arm in ordered(record):
        ends = [point.read.values for point in _ends(arm)]
        cells = [
            plain(_mean([values[item.name].value for values in ends if item.name in values]))
            for item in brief
        ]
        cost = [
            plain(_mean([getattr(s, what) / per for s in arm.spent if what != MEMORY or s.memory]))
            for what, _, per in took
        ]
        cells += _served(arm) if serves else []
        rows.append([Cell(arm.arm.name), *cells, *cost])
    return Table("What every arm reads at the end of its curve, mean over seeds", heads, rows)


SERVES = (
    ("Fisher cosine", "held-out words", "held_out"),
    ("trait/√KL", "on the base's text", "per_root_kl"),
    ("trait/√KL at most", "a small change", "optimum"),
)
"""How much of what an arm changes serves the trait: title, unit, and where it stands."""


def _served(arm: ArmRecord) -> list[Cell]:
    """Its cosine, what it has per √KL on the base's text, and what the best small change has."""
    found = [point.fisher for point in _ends(arm) if point.fisher]
    return [plain(_mean([getattr(one, what).value for one in found])) for *_, what in SERVES]


def _unit(item: Entry) -> str:
    return "" if item.unit in item.title else item.unit


def _of_acts(item: Entry) -> bool:
    """Whether it is read on vignettes, which lead where a forced choice reads them."""
    return "vignettes" in item.fields


def foundations_table(record: CompareRecord) -> Table:
    """What the vignettes say at the end of every curve: nats from the base, mean over seeds."""
    heads = [Cell("arm"), *(Cell(name, "Δ nats") for name in FOUNDATIONS)]
    rows = []
    for arm in ordered(record):
        ends = [point.read.delta_nats for point in _ends(arm)]
        cells = [plain(_mean([delta[name].value for delta in ends])) for name in FOUNDATIONS]
        rows.append([Cell(arm.arm.name), *cells])
    counts = {r.n for arm in record.arms for p in arm.points for r in p.read.delta_nats.values()}
    title = f"Moral foundations at the end of every curve, by {max(counts, default=0)} vignettes"
    return Table(title, heads, rows)


def _ends(arm: ArmRecord) -> list[ArmPoint]:
    """The last point of its curve, at every seed."""
    last = max((point.at for point in arm.points), default=math.nan)
    return [point for point in arm.points if point.at == last]


def curves_table(record: CompareRecord) -> Table:
    """Every point of every curve."""
    heads = [
        Cell("arm"),
        Cell("point"),
        Cell("trait", "Δ"),
        Cell("damage", "Δ"),
        Cell("KL"),
        Cell("η"),
    ]
    rows = [
        [
            Cell(f"{arm.arm.name}"),
            Cell(f"{arm.along} {number(place.at)}".strip() if arm.along else "–"),
            reading(place.trait, signed=True),
            reading(place.damage, signed=True),
            reading(place.kl),
            reading(place.eta, signed=True),
        ]
        for arm in ordered(record)
        for place in arm.curve
    ]
    return Table("Every point of every curve", heads, rows)


def persisted_table(record: CompareRecord) -> Table:
    """The trait that is left under every condition; no rows where it was not read."""
    arms = list(dict.fromkeys(row.arm for row in record.persisted))
    conditions = list(dict.fromkeys(row.condition for row in record.persisted))
    found = {(row.arm, row.condition): row.trait for row in record.persisted}
    heads = [Cell("condition"), *(Cell(name, "Δ trait from the base") for name in arms)]
    rows = [
        [Cell(condition), *(reading(found.get((name, condition)), signed=True) for name in arms)]
        for condition in conditions
    ]
    return Table("The trait that is left, less the base's under the same condition", heads, rows)


def said(record: CompareRecord) -> list[Said]:
    """The show prompts, each with every arm's answer in the order in which the arms are listed."""
    answers: dict[str, list[tuple[str, Completion]]] = {}
    for arm in record.arms:
        for item in arm.shown:
            answers.setdefault(item.prompt, []).append((arm.arm.name, item))
    return [Said(prompt, lines) for prompt, lines in answers.items()]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan


def markdown(table: Table) -> str:
    """A table in Markdown, a value with its interval in one cell."""

    def row(cells: Sequence[Cell]) -> str:
        texts = (f"{cell.text} {cell.under}".strip().replace("|", "\\|") for cell in cells)
        return f"| {' | '.join(texts)} |"

    return "\n".join([row(table.heads), "|---" * len(table.heads) + "|", *map(row, table.rows)])


def write_page(folder: Path, record: CompareRecord) -> Path:
    """Writes figure, table and page beside the record; returns the page's path."""
    drawing = figure(record)
    vector = draw.svg(drawing, FIGURE)
    disk.write_text(folder / f"{FIGURE}.svg", vector)
    disk.write_bytes(folder / f"{FIGURE}.png", draw.png(drawing))
    words = (primary_words(record), best_words(record), *notes_of(record))
    text = [
        f"`{record.command}`",
        *words,
        *map(markdown, (main_table(record), readings_table(record))),
    ]
    disk.write_text(folder / TABLE, "\n\n".join([*text, ""]))
    label = f"Trait against damage and KL, an arm a line. {primary_words(record)}"
    page = rendered(
        "compare.html.j2",
        record=record,
        primary=primary_words(record),
        best=best_words(record),
        notes=notes_of(record),
        tables=[main_table(record), readings_table(record)],
        more=[curves_table(record), foundations_table(record)],
        persisted=persisted_table(record),
        drawing=theme.inline(vector, FIGURE, label),
        said=said(record),
        title=str(at(record.persona, "title") or ""),
        arms=[(arm.arm.name, arm.says) for arm in record.arms],
        trait=entry(record.settings.trait),
        damage=entry(record.settings.damage),
        environment=sorted(record.environment.items()),
        config=json.dumps(
            record.model_dump(mode="json", include={"settings", "config"}),
            indent=2, ensure_ascii=False,
        ),
    )  # fmt: skip
    disk.write_text(folder / PAGE, page)
    return folder / PAGE
