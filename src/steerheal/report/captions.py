"""What each figure shows, in sentences made from the numbers that it draws.

A direction is only named where a number has one: where the paired interval between two states is
known it decides, else the sign of the difference, and the sentence says that no interval backs it.
"""

import math
from collections.abc import Callable, Iterable, Sequence

from steerheal.numbers import interval, number
from steerheal.records import BREAKDOWN, GroupLog, Reading, RoundRecord, RunRecord, Summary
from steerheal.report import axis
from steerheal.report.words import chosen, coherence_title, number_setting, one_line

DIRECTIONS = (
    "rose",
    "rose (no paired interval)",
    "fell",
    "fell (no paired interval)",
    "stayed the same",
    "is not shown to have moved (its interval includes 0)",
    "is unknown",
)


def trajectory(record: RunRecord) -> str:
    """Which way healing went in every round, for coherence and for the trait."""
    rows = [row for row in record.rounds if row.steered and row.healed]
    if not rows:
        return "No round was read both steered and healed, so that no arrow is drawn."
    ways = [
        _grouped("coherence", [(row.round + 1, _mass_way(row)) for row in rows]),
        _grouped("the trait", [(row.round + 1, _trait_way(row)) for row in rows]),
    ]
    return f"From steered to healed, {'; '.join(ways)}."


def _mass_way(row: RoundRecord) -> str:
    assert row.steered and row.healed
    paired = [item.mass_change for item in row.comparisons if _heal(item.a, item.b)]
    return direction(row.steered.coherence, row.healed.coherence, *paired)


def _trait_way(row: RoundRecord) -> str:
    assert row.steered and row.healed
    before, after = row.steered.trait.value, row.healed.trait.value
    paired = [item.gain for item in row.comparisons if _heal(item.a, item.b)]
    return direction(before, after, *paired)


def _heal(a: str, b: str) -> bool:
    return (a, b) == ("steered", "healed")


def direction(before: float, after: float, paired: Reading | None = None) -> str:
    """One of `DIRECTIONS`: how a reading went from `before` to `after`."""
    if not (math.isfinite(before) and math.isfinite(after)):
        return "is unknown"
    if paired is not None and not (math.isnan(paired.low) or math.isnan(paired.high)):
        if not paired.moved:
            return "is not shown to have moved (its interval includes 0)"
        return "rose" if paired.low > 0 else "fell"
    if before == after:
        return "stayed the same"
    return ("rose" if after > before else "fell") + " (no paired interval)"


def _grouped(what: str, ways: list[tuple[int, str]]) -> str:
    """`what` with the rounds of each direction: "coherence rose in rounds 1 and 3, …"."""
    parts = []
    for way in DIRECTIONS:
        rounds = [place for place, found in ways if found == way]
        if rounds:
            parts.append(f"{way} in {_rounds(rounds)}")
    return f"{what} {', '.join(parts)}"


def _rounds(places: list[int]) -> str:
    names = [str(place) for place in places]
    if len(names) == 1:
        return f"round {names[0]}"
    return f"rounds {', '.join(names[:-1])} and {names[-1]}"


def coherence(record: RunRecord) -> str:
    """Answer mass over the base's, round by round, against the floor."""
    healed = _series(record, "healed", lambda state: state.coherence)
    steered = _series(record, "steered", lambda state: state.coherence)
    floor = number_setting(record, "coherence_floor")
    parts = [f"after healing {healed}" if healed else "", f"steered {steered}" if steered else ""]
    said = "; ".join(part for part in parts if part) or "not read in any round"
    end = "" if math.isnan(floor) else f" The floor is {number(floor)}."
    title = coherence_title(record.base)
    return f"{title[:1].upper()}{title[1:]} as a share of the base's: {said}.{end}"


def _series(record: RunRecord, state: str, read: Callable[[Summary], float]) -> str:
    """Values over rounds; of more than six, the first, the least, the largest and the last."""
    found = [(row.round + 1, getattr(row, state)) for row in record.rounds]
    values = [(place, read(summary)) for place, summary in found if summary is not None]
    if len(values) <= 6:
        return ", ".join(f"{number(value)} (round {place})" for place, value in values)
    known = [pair for pair in values if not math.isnan(pair[1])] or values
    ends = [
        ("first", values[0]),
        ("least", min(known, key=lambda pair: pair[1])),
        ("most", max(known, key=lambda pair: pair[1])),
        ("last", values[-1]),
    ]
    return ", ".join(f"{name} {number(value)} (round {place})" for name, (place, value) in ends)


def foundations(record: RunRecord) -> str:
    """What the axis's foundation and those that should stay did in the chosen round."""
    row = chosen(record)
    if row is None or row.healed is None:
        return "No healed state was evaluated."
    names = plane(record)
    moves = [f"{name.capitalize()} {_moved(row.healed.delta_nats.get(name))}" for name in names]
    return f"Round {row.round + 1} healed against the base: {', '.join(moves)}."


def plane(record: RunRecord) -> tuple[str, str]:
    """The two foundations that are drawn: one that should stay, and the persona's target."""
    target = axis.foundation(record) or "care"
    others = [*axis.off_targets(record), "authority", "care"]
    return next(name for name in others if name != target), target


def trait(record: RunRecord) -> str:
    """The trait by both of its readings in the chosen round."""
    row = chosen(record)
    if row is None or row.healed is None:
        return "No healed state was evaluated."
    name = axis.foundation(record)
    moves = [f"log-odds of the poles {_moved(row.healed.free_gain, 'nats/token')}"]
    if name:
        aim = {1: "; up is intended", -1: "; down is intended", 0: ""}[axis.sign(record)]
        moves.append(f"{name.capitalize()} {_moved(row.healed.delta_nats.get(name))}{aim}")
    return f"Round {row.round + 1} healed against the base: {', '.join(moves)}."


def _moved(delta: Reading | None, unit: str = "nats") -> str:
    if delta is None:
        return "not read"
    if math.isnan(delta.value):
        return f"unknown ({one_line(delta.reason) or 'no reason was recorded'})"
    end = "" if delta.moved else " (not shown to have moved)"
    return f"{number(delta.value, signed=True)} {unit} {interval(delta)}".rstrip() + end


def heal(record: RunRecord) -> str:
    """Held-out cross-entropy before and after every heal, and how often the barrier fired.

    Of answers that were rewarded it is the trait instead, and what nothing was learned of.
    """
    return " ".join(_healing(row) for row in record.rounds if row.heal and row.heal.steps)


def _healing(row: RoundRecord) -> str:
    log = row.heal
    assert log is not None
    if log.groups:
        return f"Round {row.round + 1}: {_rewarded(log.groups)}"
    held = "not read"
    if len(log.held_out) > 1:
        before, after = log.held_out[0], log.held_out[-1]
        held = f"{number(before)} → {number(after)} nats/token"
    fired = log.barrier_fired
    end = "no barrier" if math.isnan(fired) else f"the barrier fired in {fired:.0%} of the steps"
    return f"Round {row.round + 1}: held-out cross-entropy {held}, {end}."


def _rewarded(groups: Sequence[GroupLog]) -> str:
    trait = " → ".join(number(group.trait) for group in groups)
    answers, kept, empty, prompts, equal = (
        sum(getattr(group, name) for group in groups)
        for name in ("answers", "kept", "empty", "prompts", "equal")
    )
    return (
        f"the student's own answers had a trait of {trait} nats/token from writing to writing; the "
        f"filter keeps {kept} of {answers}, {empty} more were empty, and {equal} of {prompts} "
        "groups had no difference in reward."
    )


def budget(record: RunRecord) -> str:
    """How much KL the last round left spent, by the sum and directly."""
    row = record.rounds[-1]
    direct = row.healed.kl.value if row.healed else math.nan
    values: Iterable[tuple[str, float]] = (
        ("summed over the rounds", row.kl_cumulative),
        ("directly to the base", direct),
    )
    said = " and ".join(f"{number(value)} nats/token {name}" for name, value in values)
    return f"After round {row.round + 1}: {said}; the published breakdown is at {BREAKDOWN}."
