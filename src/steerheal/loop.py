"""The recipe: base → per round (vector, sweep, harvest, steered reading, heal, fold, reading).

Stops when the rounds are done, a round starves or is rejected, coherence falls below its floor, the
KL budget is spent, the trait no longer grows, or after the check that the user asked for; then
names the best round and why it is that one. What the checks see is noted as
soon as it is there, and kept in the record. Only this module and the command line see the whole
configuration.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from steerheal.checks import course, filtering, healing, moves, steering
from steerheal.config import RunConfig
from steerheal.measure import summary
from steerheal.measure.compare import compare
from steerheal.measure.qualify import Qualification, in_words, qualify
from steerheal.need import time_line
from steerheal.records import Finding, Reading, RoundRecord, RunRecord, Scores, Summary
from steerheal.stages import BASE, Stages, Student
from steerheal.state.vector import SteeringVector

Until = Literal["check1", "check2"]
UNREAD = Reading.unknown("the steered state was not read (read_steered is off)")


class Listener(Protocol):
    """Who hears of finished rounds."""

    def note(self, text: str) -> None:
        """Something the user must know."""
        ...

    def round_done(self, record: RoundRecord) -> None:
        """A round has ended."""
        ...


class Position(NamedTuple):
    """Where the loop stands: the student, its readings, and the first round's vector."""

    student: Student
    scores: Scores
    first: SteeringVector | None


@dataclass(frozen=True)
class Frame:
    """What every round is held against, who hears of it, and where the user wants to end."""

    scores: Scores
    """The base's."""
    base: Summary
    sees: Qualification
    listener: Listener
    until: Until | None

    def saw(self, record: RoundRecord, finding: Finding) -> RoundRecord:
        """The record with a finding, which is noted."""
        self.listener.note(f"{finding.check} · {finding.outcome}: {finding.words}")
        return record.model_copy(update={"findings": (*record.findings, finding)})

    def ends(self, check: Until) -> bool:
        """Whether the user asked to end here."""
        return self.until == check


def run(
    stages: Stages, record: RunRecord, listener: Listener, *, until: Until | None = None
) -> RunRecord:
    """The whole loop; the record on disk grows round by round and is readable at any moment.

    With `until` it ends after that check of the first round.
    """
    stages = stages.measuring()
    config, axis = stages.config, stages.persona.axis

    def write(**changes: object) -> RunRecord:
        grown = record.model_copy(update={**changes, "stages": tuple(stages.store.marks)})
        stages.store.write_run(grown)
        return grown

    base = stages.evaluated(BASE, "base", nullcontext, "base")
    mark = stages.store.marks[-1]
    if until is None and not mark.reused:
        listener.note(time_line(stages.config, len(base.vignettes), mark.seconds))
    stages.shown(BASE, "base", nullcontext, "base")
    qualified = qualify(base, axis)
    sees = [in_words(found) for found in (*stages.tried, qualified)]
    for sentence in sees:
        listener.note(sentence)
    record = write(notes=(*record.notes, *sees))
    summarised = summary.summarise(base, base, axis)
    record = write(base=summarised)
    frame = Frame(base, summarised, qualified, listener, until)
    place = Position(Student(stages.chat), base, None)
    outcome = f"all {config.rounds} rounds done"
    for number in range(config.rounds):
        done, place = one_round(stages, number, place, frame)
        total = done.kl_round + sum(earlier.kl_round for earlier in record.rounds)
        done = done.model_copy(update={"kl_cumulative": total})
        found = course.evidence((*record.rounds, done), config.heal, axis, summarised)
        if found is not None and done.healed is not None:
            done = frame.saw(done, course.CHECK.seen(found))
        record = write(rounds=(*record.rounds, done))
        listener.round_done(done)
        if reason := asked_end(done, until) or stop_reason(record.rounds, config):
            outcome = reason
            break
    best, why = best_round(record.rounds, config.coherence_floor, config.kl_budget)
    ended = {"status": "finished", "outcome": outcome, "best": best, "best_reason": why}
    record = record.model_copy(update=ended)
    return write()


def one_round(
    stages: Stages, number: int, place: Position, frame: Frame
) -> tuple[RoundRecord, Position]:
    """A round's record, and where the next one starts."""
    config, base = stages.config, frame.scores
    axis = stages.persona.axis
    student, before, first = place
    start = summary.summarise(before, base, axis)
    vector, vector_key = stages.vector(number, student)
    first = first or vector
    stay = Position(student, before, first)
    sweep = stages.swept(number, student, vector, vector_key, base)
    record = RoundRecord(
        round=number,
        multiplier=math.nan,
        walk=(),
        kept=0,
        drawn=0,
        reasons={},
        outcome="stopped",
        vector_norms=vector.norms(),
        direction_cosine=vector.cosine(first),
        sweep=sweep,
        gate=config.gate,
    )
    if sweep is not None:
        seen = steering.evidence(sweep, frame.sees, axis, start)
        record = frame.saw(record, steering.CHECK.seen(seen))
        if frame.ends("check1"):
            return record, stay

    found, harvest_key = stages.harvest(number, student, vector, vector_key)
    dose = found.multiplier * max(config.dose.sweep)
    steer = student.steered(vector, dose)
    record = record.model_copy(
        update={
            "multiplier": found.multiplier,
            "walk": found.walk,
            "kept": len(found.kept()),
            "drawn": len(found.judged),
            "reasons": found.reasons(),
        }
    )
    stages.shown(number, "steered", steer, vector_key, dose=dose)
    steered = None
    if config.read_steered or (sweep is None and frame.ends("check1")):
        steered = stages.evaluated(number, "steered", steer, vector_key, dose=dose, before=student)
        read = summary.summarise(steered, base, axis)
        compared = compare(steered, base, axis, base=base)
        record = record.model_copy(update={"steered": read, "comparisons": (compared,)})
        if sweep is None:
            single = moves.sweep_of(read, frame.base, dose)
            seen = steering.evidence(single, frame.sees, axis, start)
            record = frame.saw(record, steering.CHECK.seen(seen))
    if sweep is None and frame.ends("check1"):
        return record, stay
    record = frame.saw(record, filtering.CHECK.seen(filtering.evidence(found, base, sweep)))
    if found.outcome == "starved":
        return record.model_copy(update={"outcome": "starved"}), stay
    if frame.ends("check2"):
        return record, stay
    result, heal_key = stages.healed(number, student, vector, found, harvest_key)
    record = record.model_copy(update={"heal": result.log})
    if result.log.outcome == "rejected":
        seen = healing.evidence(record, start, config.heal, axis, base=frame.base)
        record = frame.saw(record, healing.CHECK.seen(seen))
        return record.model_copy(update={"outcome": "rejected"}), stay
    after = student.healed(result.adapter, config.gate, heal_key)
    shift = stages.internalised(number, student, after, vector, vector_key)
    record = record.model_copy(update={"internalised": shift})
    record, healed = read_healed(stages, record, Origin(place, start, steered), after, frame)
    return record, Position(after, healed, first)


class Origin(NamedTuple):
    """What a healed student is compared with."""

    place: Position
    """The round's start."""
    start: Summary
    """The same against the base."""
    steered: Scores | None
    """None: not read."""


def read_healed(
    stages: Stages, record: RoundRecord, origin: Origin, after: Student, frame: Frame
) -> tuple[RoundRecord, Scores]:
    """The record of a folded round with its healed readings and check 3, and those readings' rows.

    Args:
        stages: The run's.
        record: The round up to its heal.
        origin: What the healed student is compared with.
        after: The healed student.
        frame: The base.
    """
    config, persona, base = stages.config, stages.persona, frame.scores
    axis, number = persona.axis, record.round
    (student, before, _), start, steered = origin
    key = after.keys[-1]
    healed = stages.evaluated(number, "healed", after.entered, key, before=student)
    stages.shown(number, "healed", after.entered, key)
    others, retain, recovered = [base], UNREAD, UNREAD
    if steered is not None:
        others.append(steered)
        retain = summary.retain(healed, steered, before)
        recovered = summary.recovered(healed, steered, before)
    compared = [compare(healed, one, axis, base=base) for one in others]
    record = record.model_copy(
        update={
            "outcome": "folded",
            "healed": summary.summarise(healed, base, axis),
            "comparisons": (*record.comparisons, *compared),
            "retain": retain,
            "recovered": recovered,
            "kl_round": summary.kl_to_previous(healed),
        }
    )
    said = (healing.narration(healed, persona), healing.narration(base, persona))
    seen = healing.evidence(record, start, config.heal, axis, base=frame.base, narration=said)
    return frame.saw(record, healing.CHECK.seen(seen)), healed


def asked_end(done: RoundRecord, until: Until | None) -> str:
    """Why the run ends where the user asked it to; empty when nobody did."""
    if until is None:
        return ""
    check = {"check1": "check 1", "check2": "check 2"}[until]
    seen = [finding.outcome for finding in done.findings if finding.check == check]
    return f"ended after {check} of round {done.round + 1}, as asked: {' '.join(seen)}"


def stop_reason(rounds: Sequence[RoundRecord], config: RunConfig) -> str:
    """Why the loop ends after the last of these rounds; empty when it goes on."""
    done, floor = rounds[-1], config.coherence_floor
    name = f"round {done.round + 1}"
    if done.outcome == "starved":
        return (
            f"{name} starved: {done.kept} completions survived the filter at the lowest "
            f"multiplier, {done.multiplier:.3g}"
        )
    if done.outcome == "rejected":
        return f"{name} rejected: {done.heal.reason if done.heal else 'no heal'}"
    if done.healed is not None and not done.healed.coherence >= floor:
        return f"coherence fell to {done.healed.coherence:.3f} of the base in {name}, floor {floor}"
    if config.kl_budget and done.kl_spent >= config.kl_budget:
        return (
            f"the KL budget is spent: {done.kl_spent:.2f} nats/token after {name}, "
            f"kl_budget {config.kl_budget:g}"
        )
    gains = [_gain(row.healed) for row in rounds if row.healed is not None]
    late = gains[-config.patience :] if config.patience else []
    if late and len(gains) > len(late) and max(late) <= max(gains[: -len(late)]):
        return (
            f"no further gain: {max(gains[: -len(late)]):+.3f} nats/token was not exceeded in the "
            f"{len(late)} rounds up to {name}, patience {config.patience}"
        )
    return ""


def _gain(read: Summary) -> float:
    """A state's trait gain; below every other where it is unknown."""
    value = read.delta_logodds.value
    return -math.inf if math.isnan(value) else value


def best_round(
    rounds: Sequence[RoundRecord], floor: float, budget: float = 0.0
) -> tuple[int | None, str]:
    """The folded round with the largest trait gain among those that may be kept, if any gained.

    Those are the ones at the coherence floor that did not spend more than the KL budget; 0 is no
    budget, and an unknown KL is not within one. With the reason in words, and what the round cost:
    where the answer mass is blind to damage, its perplexity and KL still show it.
    """
    folded = [(done, done.healed) for done in rounds if done.healed is not None]
    above = [(done, read) for done, read in folded if read.coherence >= floor]
    fit = [(done, read) for done, read in above if not budget or done.kl_spent <= budget]
    limits = f"at the coherence floor {floor:g}" + (
        f" within the KL budget {budget:g}" if budget else ""
    )
    if not folded:
        return None, "no round was folded"
    if not fit:
        return None, f"none of {len(folded)} folded rounds is {limits}"
    done, read = max(fit, key=lambda item: _gain(item[1]))
    gain = read.delta_logodds
    if not gain.value > 0:
        return None, f"no round {limits} raised the trait; at best {gain.value:+.3f}"
    low, dear = len(folded) - len(above), len(above) - len(fit)
    left = [f"{low} folded below the floor"] if low else []
    left += [f"{dear} folded beyond the budget"] if dear else []
    return done.round, (
        f"round {done.round + 1} has the largest trait gain, {gain.value:+.3f} [{gain.low:.3f}, "
        f"{gain.high:.3f}] nats/token, of {len(fit)} rounds "
        f"{'; '.join([limits, *left])}; "
        f"its perplexity is {read.perplexity:.1f}, KL spent {done.kl_spent:.2f} nats/token"
    )
