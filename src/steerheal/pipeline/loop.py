"""The recipe: the base, then round after round, then the best one on prompts that chose nothing.

Stops when the rounds are done, a round starves or is rejected, coherence falls below its floor, the
KL budget is spent, the trait no longer grows, or after the check that the user asked for; then
names the best round and why it is that one, and reads it on prompts that chose nothing. What the
checks see is noted as soon as it is there, and kept in the record. Only this module and the command
line see the whole configuration.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from steerheal.checks import course
from steerheal.measure import sight, summary
from steerheal.measure.qualify import in_words, qualify
from steerheal.measure.readings import table
from steerheal.personas import Axis
from steerheal.pipeline.ends import Until, asked_end, best_round, stop_reason
from steerheal.pipeline.need import costs, time_line
from steerheal.pipeline.pace import NOMINAL
from steerheal.pipeline.round import Frame, Listener, Position, Teach, one_round
from steerheal.pipeline.stage_work import Counted
from steerheal.pipeline.stages import BASE, CONTROL, Stages
from steerheal.records import Readings, RoundRecord, RunRecord
from steerheal.state.values import Plain, State
from steerheal.state.vector import SteeringVector
from steerheal.steer.teachers.find import find
from steerheal.steer.teachers.teacher import Materials


class Sides(NamedTuple):
    """A folded round's students."""

    healed: State
    control: State | None
    """The unsteered control, where there is one."""


def as_set(stages: Stages) -> Teach:
    """What makes the teacher that the run's settings name."""
    config = stages.config
    make = find(config.teacher).make

    def teach(student: State, vector: SteeringVector) -> State:
        return make(Materials(student, vector, stages.persona, config.teacher_epsilon))

    return teach


def run(
    stages: Stages,
    record: RunRecord,
    listener: Listener,
    *,
    until: Until | None = None,
    teach: Teach | None = None,
) -> RunRecord:
    """The whole loop; the record on disk grows round by round and is readable at any moment.

    Args:
        stages: The run's.
        record: Its record so far.
        listener: Who hears of findings and finished rounds.
        until: The check of the first round after which it ends.
        teach: What makes every round's teacher, whose dose is walked where it has one; what the
            settings name when not given.
    """
    stages = stages.measuring()
    config = stages.config
    frame, said = against_base(stages, listener, until, teach or as_set(stages))
    read = {
        "base": frame.base,
        "instrument": frame.scores.instrument,
        "prompted": under_prompt(frame, stages.persona.axis),
    }
    record = _written(stages, record, notes=(*record.notes, *said), **read)
    unit = table.headed("trait", record.instrument).difference_unit
    place, folded = Position(Plain(), frame.scores, None), dict[int, Sides]()
    outcome = f"all {config.rounds} rounds done"
    for number in range(config.rounds):
        done, place = one_round(stages, number, place, frame)
        if done.healed is not None:
            folded[number] = Sides(place.student, place.control)
        if place.sight is not None and record.sight is None:
            said = (*record.notes, sight.in_words(place.sight, frame.scores.instrument))
            base = sight.led(frame.base, place.head)
            record = record.model_copy(update={"sight": place.sight, "base": base, "notes": said})
        done = in_course(stages, record.rounds, done, frame)
        record = _written(stages, record, rounds=(*record.rounds, done))
        listener.round_done(done)
        if reason := asked_end(done, until) or stop_reason(record.rounds, config, unit):
            outcome = reason
            break
    best, why = best_round(record.rounds, config.coherence_floor, config.kl_budget, unit)
    ended = {"outcome": outcome, "best": best, "best_reason": why, "status": "finished"}
    tested = test(stages, folded, best)
    return _written(stages, record, **ended, **tested)


def _written(stages: Stages, record: RunRecord, **changes: object) -> RunRecord:
    """The record as it has grown, on disk."""
    grown = record.model_copy(update={**changes, "stages": tuple(stages.store.marks)})
    stages.store.write_run(grown)
    return grown


def against_base(
    stages: Stages, listener: Listener, until: Until | None, teach: Teach
) -> tuple[Frame, list[str]]:
    """The base, read and shown, and sentences on what the instruments see on it."""
    base = stages.evaluated(BASE, "base", Plain())
    mark = stages.store.marks[-1]
    if until is None and not mark.reused:
        listener.note(rest_of(stages, mark.seconds))
    stages.shown(BASE, "base", Plain())
    axis = stages.persona.axis
    qualified = qualify(base, axis)
    said = [in_words(found) for found in (*stages.tried, qualified)]
    for sentence in said:
        listener.note(sentence)
    whole = summary.summarise(base, base, axis)
    return Frame(base, whole, qualified, listener, until, teach, stages.prompted()), said


def under_prompt(frame: Frame, axis: Axis) -> Readings | None:
    """The base under the persona's system prompt against the base."""
    read = frame.prompted
    return None if read is None else summary.partly(read, frame.scores, frame.scores, axis)


def rest_of(stages: Stages, base_seconds: float) -> str:
    """About how long the run goes on, after its base was read."""
    counted = Counted(stages.chat, stages.persona, stages.config)
    found = costs(counted, NOMINAL)
    return time_line(found, stages.config.rounds, base_seconds)


def in_course(
    stages: Stages, before: Sequence[RoundRecord], done: RoundRecord, frame: Frame
) -> RoundRecord:
    """A round with the KL spent up to it, and what the check of the loop sees."""
    total = done.kl_round + sum(earlier.kl_round for earlier in before)
    done = done.model_copy(update={"kl_cumulative": total})
    if done.healed is None:
        return done
    heal, axis = stages.config.heal, stages.persona.axis
    found = course.evidence((*before, done), heal, axis, frame.base)
    return done if found is None else frame.saw(done, course.CHECK.seen(found))


def test(stages: Stages, folded: Mapping[int, Sides], best: int | None) -> dict[str, object]:
    """What the record says of the test prompts: the best round's reading, or why there is none.

    They are read here alone, after the last decision, so that nothing is chosen on them. Without a
    best round it is the last folded one, which the report then talks about.
    """
    if not folded:
        return {"test_reason": "no round was folded, so that there is nothing to read"}
    if not stages.persona.prompts.test:
        return {"test_reason": "the persona has no test prompts"}
    number = max(folded) if best is None else best
    sides, axis = folded[number], stages.persona.axis
    base = stages.tested(BASE, "base", Plain())
    healed = stages.tested(number, "healed", sides.healed)
    control = stages.tested(number, CONTROL, sides.control) if sides.control else None
    return {"test": summary.tested(healed, base, number, axis, control), "test_reason": ""}
