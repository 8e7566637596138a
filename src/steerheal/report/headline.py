"""What a run showed, in a few sentences, and the conditions that it should meet.

The page and the command line print the same sentences; whatever did not hold comes first.
"""

import math

from steerheal.measure.readings.table import Entry, listed
from steerheal.numbers import interval, number
from steerheal.records import UNREAD, Record, RoundRecord, RunRecord, Summary
from steerheal.report import axis, control
from steerheal.report.judge import judged
from steerheal.report.plain import plainly
from steerheal.report.words import (
    change,
    chosen,
    coherence_title,
    free_change,
    number_setting,
    one_line,
    persona_name,
    stand_ins,
    tested,
    trait_read,
)


class Condition(Record):
    """One thing a run should show, whether it holds, and the numbers behind it."""

    text: str
    holds: bool | None
    """None: nobody could tell."""
    numbers: str


def headline(record: RunRecord) -> str:
    """What the run showed; whatever did not hold comes first."""
    return " ".join(part for part in headline_parts(record) if part)


def headline_parts(record: RunRecord) -> tuple[str, str]:
    """What the run showed, and what stands beside it: damage, and rounds that folded nothing."""
    row, halted = chosen(record), [stuck(record, item) for item in record.rounds]
    if row is None:
        return _joined(_status(record), *halted, _nothing(record)), ""
    first = _joined(
        _status(record),
        plainly(record, row),
        _faults(record, row),
        _result(record, row),
        of_prompt(record, row),
    )
    return first, _joined(
        stand_ins(record, row), guarded(record, row), judged(record, row), *halted
    )


def _joined(*sentences: str) -> str:
    return " ".join(sentence for sentence in sentences if sentence)


def guarded(record: RunRecord, row: RoundRecord) -> str:
    """What answer mass cannot see, base against healed, and the off-target foundations."""
    if record.base is None or row.healed is None:
        return ""
    names = dict.fromkeys([*record.base.values, *row.healed.values])
    entries = [entry for entry in listed(names) if entry.kind == "guard" and entry.brief]
    parts = [_guard(record.base, row.healed, entry) for entry in entries]
    parts += axis.selective(row.healed)
    parts += axis.off_target_moves(record, row.healed)
    return f"Damage guard: {', '.join(parts)}."


def _guard(base: Summary, healed: Summary, entry: Entry) -> str:
    before, after = (state.values.get(entry.name, UNREAD).value for state in (base, healed))
    if math.isnan(before) and math.isnan(after):
        return f"{entry.title} not read"
    return f"{entry.title} {number(before)} → {number(after)}"


def selected(record: RunRecord) -> str:
    """What choosing a round on its own readings does to them; empty where there was no choice."""
    folded = sum(row.healed is not None for row in record.rounds)
    if record.best is None or folded < 2:
        return ""
    said = (
        f"round {record.best + 1} was chosen among {folded} by the readings that stand here, on "
        "the same prompts, so that its own are a little too good. Their intervals hold the chance "
        "of the prompts, not that of the choice."
    )
    if record.test is None:
        return said
    return (
        f"{said} On {record.test.prompts} test prompts that chose nothing it reads "
        f"{free_change(record.test)}."
    )


def _status(record: RunRecord) -> str:
    why = one_line(record.error) or one_line(record.outcome)
    match record.status:
        case "finished":
            return ""
        case "running":
            return "The run has not finished: it is still going, or was killed."
        case "interrupted":
            return f"The run was interrupted{': ' + why if why else ''}."
        case "failed":
            return f"The run failed: {why or 'no reason was recorded'}."


def _nothing(record: RunRecord) -> str:
    if record.base is None:
        return "No state was evaluated, not even the base."
    if any(row.outcome == "stopped" for row in record.rounds):
        return ""
    return "No round was healed, so that there is nothing to hold against the base."


def stuck(record: RunRecord, row: RoundRecord) -> str:
    """Why a round folded nothing; empty for a folded round."""
    match row.outcome:
        case "folded":
            return ""
        case "starved":
            minimum = number(number_setting(record, "dose", "minimum"))
            lowest = number(row.walk[-1].multiplier if row.walk else row.multiplier)
            return (
                f"Round {row.round + 1} starved: the filter kept {row.kept} of {row.drawn} "
                f"completions down to a dose of {lowest}, and a round needs {minimum}."
            )
        case "rejected":
            why = one_line(row.heal.reason) if row.heal else ""
            return (
                f"Round {row.round + 1} was rejected and not folded: "
                f"{why or 'no reason was recorded'}."
            )
        case "stopped":
            return f"Round {row.round + 1} ended after a check, as asked: nothing was healed."


def _faults(record: RunRecord, row: RoundRecord) -> str:
    assert row.healed is not None
    faults, floor = [], number_setting(record, "coherence_floor")
    delta = trait_read(record, row).gain
    if math.isnan(delta.value):
        faults.append(f"the trait could not be read ({one_line(delta.reason) or 'no reason'})")
    elif delta.high < 0:
        faults.append("the trait moved the wrong way")
    elif math.isnan(delta.low) or math.isnan(delta.high):
        faults.append("the trait is not shown to have moved: it has no interval")
    elif not delta.moved:
        faults.append("the trait is not shown to have moved: its interval includes 0")
    if against := control.fault(record, row):
        faults.append(against)
    if axis.backwards(record, row.healed) and not row.healed.led_by_foundation:
        faults.append(f"{axis.foundation(record)} moved against what the persona intends")
    if math.isnan(row.healed.coherence):
        reason = one_line(row.healed.mass.reason) or "no reason"
        faults.append(f"coherence could not be read ({reason})")
    elif row.healed.at_best < floor:
        faults.append(f"coherence fell below {number(floor)} of the base")
    text = ", and ".join(faults)
    return text[:1].upper() + text[1:] + "." if text else ""


def _result(record: RunRecord, row: RoundRecord) -> str:
    healed = row.healed
    assert healed is not None
    read, answers = trait_read(record, row), tested(record, row) or healed
    beside = control.beside(record, row)
    start = f"{persona_name(record)} {change(read)} over the base without any hook"
    distance = f"at a KL of {number(answers.kl.value)} nats/token, {_pool(record, row)}"
    if healed.led_by_foundation:
        start += f" (the foundation {axis.foundation(record)}, {_acts(healed)})"
        parts = [start, beside, f"{free_change(answers)} {distance}"]
    else:
        parts = [f"{start} {distance}", beside, axis.move(record, healed)]
    parts.append(f"{coherence_title(healed)} {number(healed.coherence)} of the base")
    said = ", ".join(part for part in parts if part)
    tail = "; the trait moved beyond its interval" if read.gain.low > 0 else ""
    return f"Round {row.round + 1} healed: {said}{tail}."


def of_prompt(record: RunRecord, row: RoundRecord) -> str:
    """The trait as a share of what the persona's system prompt does; empty where none was read."""
    if record.prompted is None or row.healed is None:
        return ""
    share, does = row.healed.of_prompt, f"what the persona's system prompt does ({_prompt(record)})"
    where = "" if row.healed.led_by_foundation else ", both on the evaluation prompts"
    if math.isnan(share.value):
        why = one_line(share.reason) or "no reason was recorded"
        return f"What share that is of {does} is unknown: {why}."
    return f"That is {number(share.value)} {interval(share)} of {does}{where}."


def _prompt(record: RunRecord) -> str:
    assert record.prompted is not None
    return change(record.prompted)


def _acts(read: Summary) -> str:
    """Which vignettes a foundation is read on."""
    return f"on {read.gain.n} vignettes, which also choose the round"


def _pool(record: RunRecord, row: RoundRecord) -> str:
    """Which prompts the free answers are read on."""
    if found := tested(record, row):
        return f"on {found.prompts} test prompts that chose nothing"
    return "on the evaluation prompts, which also choose the round"


def conditions(record: RunRecord, shown_differs: tuple[int, int] | None) -> list[Condition]:
    """What a run should show of its best healed round.

    `shown_differs` is how many of how many show prompts got another text than from the base.
    """
    row, floor = chosen(record), number_setting(record, "coherence_floor")
    title = coherence_title(row.healed if row else record.base)
    texts = (
        "The trait rose above the base by more than its 95 % interval, without any hook",
        f"Coherence ({title}) stayed at or above {number(floor)} of the base",
        "The text differs from the base's on the show prompts",
    )
    if row is None or row.healed is None:
        nothing = "no healed round was evaluated"
        return [Condition(text=text, holds=None, numbers=nothing) for text in texts]
    return [
        _trait_rose(texts[0], record, row),
        _coherent(texts[1], record, row, floor),
        _text_differs(texts[2], shown_differs),
    ]


def _trait_rose(text: str, record: RunRecord, row: RoundRecord) -> Condition:
    assert row.healed is not None
    read, net = trait_read(record, row), control.over_control(record, row)
    delta, pool = read.gain, _acts(row.healed) if read.led_by_foundation else _pool(record, row)
    if math.isnan(delta.low):
        why = one_line(delta.reason) or "it has no interval"
        return Condition(text=text, holds=None, numbers=f"could not be read: {why}")
    beside = control.beside(record, row)
    numbers = f"{change(read)}; {beside}; round {row.round + 1} healed, {pool}"
    if net is None:
        return Condition(text=text, holds=delta.low > 0, numbers=numbers)
    text = text.replace("above the base", "above the base and above its unsteered control")
    return Condition(text=text, holds=delta.low > 0 and net.gain.low > 0, numbers=numbers)


def _coherent(text: str, record: RunRecord, row: RoundRecord, floor: float) -> Condition:
    assert row.healed is not None
    share, mass = row.healed.coherence, row.healed.mass
    if math.isnan(share) or math.isnan(floor):
        why = one_line(mass.reason) or "no reason was recorded"
        return Condition(text=text, holds=None, numbers=f"could not be read: {why}")
    numbers = f"{number(share)} of the base"
    if record.base is not None:
        numbers += f" ({number(mass.value)} against {number(record.base.mass.value)})"
    return Condition(text=text, holds=row.healed.at_best >= floor, numbers=numbers)


def _text_differs(text: str, shown_differs: tuple[int, int] | None) -> Condition:
    if shown_differs is None or shown_differs[1] == 0:
        return Condition(
            text=text, holds=None, numbers="the answers to the show prompts are not there"
        )
    differ, total = shown_differs
    return Condition(text=text, holds=differ > 0, numbers=f"{differ} of {total} prompts differ")
