"""The recipe: base → per round (vector, sweep, harvest, steered reading, heal, fold, reading).

Stops when the rounds are done, a round starves or is rejected, coherence falls below its floor, the
KL budget is spent, the trait no longer grows, or after the check that the user asked for; then
names the best round and why it is that one, and reads it on prompts that chose nothing. What the
checks see is noted as soon as it is there, and kept in the record. Only this module and the command
line see the whole configuration.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from steerheal.checks import course, filtering, healing, moves, steering
from steerheal.measure import summary
from steerheal.measure.compare import compare
from steerheal.measure.qualify import Qualification, in_words, qualify
from steerheal.pipeline.ends import Until, asked_end, best_round, stop_reason
from steerheal.pipeline.need import time_line
from steerheal.pipeline.stages import BASE, Stages
from steerheal.records import Finding, Reading, RoundRecord, RunRecord, Scores, Summary
from steerheal.state.values import Plain, State
from steerheal.state.vector import SteeringVector

UNREAD = Reading.unknown("the steered state was not read (read_steered is off)")


Teach = Callable[[State, SteeringVector], State]
"""The student and the round's vector to the state that writes what is trained on."""


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

    student: State
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
    teach: Teach

    def saw(self, record: RoundRecord, finding: Finding) -> RoundRecord:
        """The record with a finding, which is noted."""
        self.listener.note(f"{finding.check} · {finding.outcome}: {finding.words}")
        return record.model_copy(update={"findings": (*record.findings, finding)})

    def ends(self, check: Until) -> bool:
        """Whether the user asked to end here."""
        return self.until == check


def by_vector(student: State, vector: SteeringVector) -> State:
    """The student under the round's vector."""
    return student.steered(vector, 1.0)


def run(
    stages: Stages,
    record: RunRecord,
    listener: Listener,
    *,
    until: Until | None = None,
    teach: Teach = by_vector,
) -> RunRecord:
    """The whole loop; the record on disk grows round by round and is readable at any moment.

    Args:
        stages: The run's.
        record: Its record so far.
        listener: Who hears of findings and finished rounds.
        until: The check of the first round after which it ends.
        teach: What makes every round's teacher; its dose is walked where it has one.
    """
    stages = stages.measuring()
    config, axis = stages.config, stages.persona.axis

    def write(**changes: object) -> RunRecord:
        grown = record.model_copy(update={**changes, "stages": tuple(stages.store.marks)})
        stages.store.write_run(grown)
        return grown

    base = stages.evaluated(BASE, "base", Plain())
    mark = stages.store.marks[-1]
    if until is None and not mark.reused:
        listener.note(time_line(stages.config, len(base.vignettes), mark.seconds))
    stages.shown(BASE, "base", Plain())
    qualified = qualify(base, axis)
    sees = [in_words(found) for found in (*stages.tried, qualified)]
    for sentence in sees:
        listener.note(sentence)
    record = write(notes=(*record.notes, *sees))
    summarised = summary.summarise(base, base, axis)
    record = write(base=summarised)
    frame = Frame(base, summarised, qualified, listener, until, teach)
    place = Position(Plain(), base, None)
    outcome, folded = f"all {config.rounds} rounds done", dict[int, State]()
    for number in range(config.rounds):
        done, place = one_round(stages, number, place, frame)
        if done.healed is not None:
            folded[number] = place.student
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
    ended = {"outcome": outcome, "best": best, "best_reason": why}
    record = record.model_copy(update=ended | test(stages, folded, best))
    return write(status="finished")


def test(stages: Stages, folded: Mapping[int, State], best: int | None) -> dict[str, object]:
    """What the record says of the test prompts: the best round's reading, or why there is none.

    They are read here alone, after the last decision, so that nothing is chosen on them. Without a
    best round it is the last folded one, which the report then talks about.
    """
    if not folded:
        return {"test_reason": "no round was folded, so that there is nothing to read"}
    if not stages.persona.prompts.test:
        return {"test_reason": "the persona has no test prompts"}
    number = max(folded) if best is None else best
    student = folded[number]
    base = stages.tested(BASE, "base", Plain())
    healed = stages.tested(number, "healed", student)
    return {"test": summary.tested(healed, base, number), "test_reason": ""}


def one_round(
    stages: Stages, number: int, place: Position, frame: Frame
) -> tuple[RoundRecord, Position]:
    """A round's record, and where the next one starts."""
    config, base = stages.config, frame.scores
    axis = stages.persona.axis
    student, before, first = place
    start = summary.summarise(before, base, axis)
    vector = stages.vector(number, student)
    first = first or vector
    stay = Position(student, before, first)
    sweep = stages.swept(number, student, vector, base)
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

    teacher = frame.teach(student, vector)
    found, harvest_key = stages.harvest(number, teacher)
    dose = found.multiplier * max(config.dose.sweep)
    steer = teacher.at_dose(dose) if teacher.dose else teacher
    record = record.model_copy(
        update={
            "multiplier": found.multiplier,
            "walk": found.walk,
            "kept": len(found.kept()),
            "drawn": len(found.judged),
            "reasons": found.reasons(),
        }
    )
    stages.shown(number, "steered", steer)
    steered = None
    if config.read_steered or (sweep is None and frame.ends("check1")):
        steered = stages.evaluated(number, "steered", steer, before=student)
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
    result = stages.healed(number, student, teacher, found, harvest_key)
    record = record.model_copy(update={"heal": result.log})
    if result.log.outcome == "rejected":
        seen = healing.evidence(record, start, config.heal, axis, base=frame.base)
        record = frame.saw(record, healing.CHECK.seen(seen))
        return record.model_copy(update={"outcome": "rejected"}), stay
    after = student.folded(result.adapter, config.gate)
    shift = stages.internalised(number, student, after, vector)
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
    stages: Stages, record: RoundRecord, origin: Origin, after: State, frame: Frame
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
    healed = stages.evaluated(number, "healed", after, before=student)
    stages.shown(number, "healed", after)
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
