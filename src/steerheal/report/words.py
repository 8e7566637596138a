"""A run in words: numbers, the headline, and the conditions. No disk, no HTML.

The page and the command line print the same sentences. Text that a model or a file may have
written goes through `visible` before it reaches a terminal or a page.
"""

import math
import unicodedata

from steerheal.records import Reading, Record, RoundRecord, RunRecord

MINUS, UNKNOWN = "\N{MINUS SIGN}", "\N{EN DASH}"
JOINERS = frozenset("\u200c\u200d\u200e\u200f")
"""Format characters that scripts and emoji need."""


class Condition(Record):
    """One thing a run should show, whether it holds, and the numbers behind it."""

    text: str
    holds: bool | None
    """None: nobody could tell."""
    numbers: str


def visible(text: str) -> str:
    """The text with control and hidden format characters replaced by visible ones."""
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character in "\n\t" or character in JOINERS:
        return character
    kind, code = unicodedata.category(character), ord(character)
    if kind == "Cc" and code < 32:
        return chr(0x2400 + code)
    if code == 127:
        return "\N{SYMBOL FOR DELETE}"
    return "\N{REPLACEMENT CHARACTER}" if kind in ("Cc", "Cf", "Cs") else character


def one_line(text: str) -> str:
    """The first line that says something, made visible, without its full stop."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return visible(lines[0]).rstrip(".") if lines else ""


def number(value: float, *, signed: bool = False) -> str:
    """Three significant digits; a dash for NaN."""
    if math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    size = float(f"{abs(value):.3g}")
    text = f"{size:,.0f}" if 1000 <= size < 1e6 else f"{size:.3g}".replace("-", MINUS)
    if size == 0:
        return "0"
    return (MINUS if value < 0 else "+" if signed else "") + text


def interval(reading: Reading) -> str:
    """The 95 % interval in brackets; empty when there is none."""
    if math.isnan(reading.low) or math.isnan(reading.high):
        return ""
    return f"[{number(reading.low)}, {number(reading.high)}]"


def change(reading: Reading) -> str:
    """A change of the trait with its unit and interval."""
    return f"{number(reading.value, signed=True)} nats/token {interval(reading)}".rstrip()


def setting(record: RunRecord, *path: str) -> object:
    """A setting of the run by its path; None when the record has none."""
    value: object = record.config
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def number_setting(record: RunRecord, *path: str) -> float:
    """A numeric setting; NaN when the record has none."""
    value = setting(record, *path)
    return float(value) if isinstance(value, int | float) else math.nan


def persona_name(record: RunRecord) -> str:
    """The persona's name; it says when its poles are swapped."""
    return one_line(str(record.persona.get("name", "the trait")))


def chosen(record: RunRecord) -> RoundRecord | None:
    """The round to talk about: the best one, else the last that has a healed reading."""
    healed = [row for row in record.rounds if row.healed is not None]
    best = [row for row in healed if row.round == record.best]
    return (best or healed or [None])[-1]


def headline(record: RunRecord) -> str:
    """What the run showed; whatever did not hold comes first."""
    row = chosen(record)
    sentences = [_status(record)]
    if row is None:
        sentences += [*(stuck(record, item) for item in record.rounds), _nothing(record)]
    else:
        sentences += [_faults(record, row), _result(record, row), guarded(record, row)]
        sentences += [stuck(record, item) for item in record.rounds]
    return " ".join(sentence for sentence in sentences if sentence)


def guarded(record: RunRecord, row: RoundRecord) -> str:
    """What answer mass cannot see, base against healed, and the off-target foundations."""
    if record.base is None or row.healed is None:
        return ""
    pairs = [
        ("top-1", "top1"),
        ("share of “not wrong”", "not_wrong"),
        ("perplexity of plain prose", "plain_perplexity"),
    ]
    parts = [
        f"{title} {number(getattr(record.base, name))} → {number(getattr(row.healed, name))}"
        for title, name in pairs
    ]
    for name in record.persona.get("axis", {}).get("off_target", ()):
        delta = row.healed.delta_nats.get(name)
        if delta is not None:
            moved = "" if delta.moved else " (not moved)"
            parts.append(f"off-target {name} {number(delta.value, signed=True)} nats{moved}")
    return f"Damage guard: {', '.join(parts)}."


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
                f"completions down to multiplier {lowest}, and a round needs {minimum}."
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
    delta = row.healed.delta_logodds
    if math.isnan(delta.value):
        faults.append(f"the trait could not be read ({one_line(delta.reason) or 'no reason'})")
    elif delta.high < 0:
        faults.append("the trait moved the wrong way")
    elif not delta.moved:
        faults.append("the trait is not shown to have moved: its interval includes 0")
    if math.isnan(row.healed.coherence):
        reason = one_line(row.healed.p_ans_any.reason) or "no reason"
        faults.append(f"coherence could not be read ({reason})")
    elif row.healed.coherence < floor:
        faults.append(f"coherence fell below {number(floor)} of the base")
    text = ", and ".join(faults)
    return text[:1].upper() + text[1:] + "." if text else ""


def _result(record: RunRecord, row: RoundRecord) -> str:
    healed = row.healed
    assert healed is not None
    parts = [
        f"{persona_name(record)} {change(healed.delta_logodds)} over the base without any hook",
        f"answer mass {number(healed.coherence)} of the base",
        f"KL to base {number(healed.kl_to_base.value)} nats/token",
    ]
    tail = "; moved beyond its interval" if healed.delta_logodds.low > 0 else ""
    return f"Round {row.round + 1} healed: {', '.join(parts)}{tail}."


def conditions(record: RunRecord, shown_differs: tuple[int, int] | None) -> list[Condition]:
    """What a run should show of its best healed round.

    `shown_differs` is how many of how many show prompts got another text than from the base.
    """
    row, floor = chosen(record), number_setting(record, "coherence_floor")
    texts = (
        "The trait rose above the base by more than its 95 % interval, without any hook",
        f"The answer mass stayed at or above {number(floor)} of the base",
        "The text differs from the base's on the show prompts",
    )
    if row is None or row.healed is None:
        nothing = "no healed round was evaluated"
        return [Condition(text=text, holds=None, numbers=nothing) for text in texts]
    where = f"round {row.round + 1} healed"
    return [
        _trait_rose(texts[0], row.healed.delta_logodds, where),
        _coherent(texts[1], record, row, floor),
        _text_differs(texts[2], shown_differs),
    ]


def _trait_rose(text: str, delta: Reading, where: str) -> Condition:
    if math.isnan(delta.low):
        why = one_line(delta.reason) or "it has no interval"
        return Condition(text=text, holds=None, numbers=f"could not be read: {why}")
    numbers = f"{change(delta)}, {where}"
    return Condition(text=text, holds=delta.low > 0, numbers=numbers)


def _coherent(text: str, record: RunRecord, row: RoundRecord, floor: float) -> Condition:
    assert row.healed is not None
    share, mass = row.healed.coherence, row.healed.p_ans_any
    if math.isnan(share) or math.isnan(floor):
        why = one_line(mass.reason) or "no reason was recorded"
        return Condition(text=text, holds=None, numbers=f"could not be read: {why}")
    numbers = f"{number(share)} of the base"
    if record.base is not None:
        numbers += f" ({number(mass.value)} against {number(record.base.p_ans_any.value)})"
    return Condition(text=text, holds=share >= floor, numbers=numbers)


def _text_differs(text: str, shown_differs: tuple[int, int] | None) -> Condition:
    if shown_differs is None or shown_differs[1] == 0:
        return Condition(text=text, holds=None, numbers="the show prompts were not answered")
    differ, total = shown_differs
    return Condition(text=text, holds=differ > 0, numbers=f"{differ} of {total} prompts differ")
