"""The recipe: base → per round (vector, harvest, steered reading, heal, fold, healed reading).

Stops when the rounds are done, a round starves or is rejected, or coherence falls below its floor;
then names the best round. Only this module and the command line see the whole configuration.
"""

from contextlib import nullcontext
from typing import NamedTuple, Protocol

from steerheal.measure import summary
from steerheal.measure.compare import compare
from steerheal.measure.qualify import in_words, qualify
from steerheal.records import RoundRecord, RunRecord, Scores
from steerheal.stages import BASE, Stages, Student
from steerheal.steer.vector import SteeringVector


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


def run(stages: Stages, record: RunRecord, listener: Listener) -> RunRecord:
    """The whole loop; the record on disk grows round by round and is readable at any moment."""
    stages = stages.measuring()
    config, axis = stages.config, stages.persona.axis

    def write(**changes: object) -> RunRecord:
        grown = record.model_copy(update={**changes, "stages": tuple(stages.store.marks)})
        stages.store.write_run(grown)
        return grown

    base = stages.evaluated(BASE, "base", nullcontext, "base")
    stages.shown(BASE, "base", nullcontext, "base")
    sees = [in_words(found) for found in (*stages.tried, qualify(base, axis))]
    for sentence in sees:
        listener.note(sentence)
    record = write(notes=(*record.notes, *sees))
    record = write(base=summary.summarise(base, base, axis, resamples=config.measure.resamples))
    place = Position(Student(stages.chat), base, None)
    outcome = f"all {config.rounds} rounds done"
    for number in range(config.rounds):
        done, place = one_round(stages, number, place, base)
        total = done.kl_round + sum(earlier.kl_round for earlier in record.rounds)
        done = done.model_copy(update={"kl_cumulative": total})
        record = write(rounds=(*record.rounds, done))
        listener.round_done(done)
        if reason := stop_reason(done, config.coherence_floor):
            outcome = reason
            break
    best = best_round(record, config.coherence_floor)
    record = record.model_copy(update={"status": "finished", "outcome": outcome, "best": best})
    return write()


def one_round(
    stages: Stages, number: int, place: Position, base: Scores
) -> tuple[RoundRecord, Position]:
    """A round's record, and where the next one starts."""
    config = stages.config
    axis, resamples = stages.persona.axis, config.measure.resamples
    student, before, first = place
    vector, vector_key = stages.vector(number, student)
    first = first or vector
    found, harvest_key = stages.harvest(number, student, vector, vector_key, base)

    dose = found.multiplier * max(config.dose.sweep)
    steer = student.steered(vector, dose)
    steered = stages.evaluated(number, "steered", steer, vector_key, dose=dose, before=student)
    stages.shown(number, "steered", steer, vector_key, dose=dose)
    record = RoundRecord(
        round=number,
        multiplier=found.multiplier,
        walk=found.walk,
        kept=len(found.kept()),
        drawn=len(found.judged),
        reasons=found.reasons(),
        outcome="starved",
        vector_norms=vector.norms(),
        direction_cosine=vector.cosine(first),
        steered=summary.summarise(steered, base, axis, resamples=resamples),
        comparisons=(compare(steered, base, axis, base=base, resamples=resamples),),
        gate=config.gate,
    )
    stay = Position(student, before, first)
    if found.outcome == "starved":
        return record, stay
    result, heal_key = stages.healed(number, student, found, harvest_key)
    record = record.model_copy(update={"heal": result.log, "outcome": "rejected"})
    if result.log.outcome == "rejected":
        return record, stay

    after = student.healed(result.adapter, config.gate, heal_key)
    key = after.keys[-1]
    healed = stages.evaluated(number, "healed", after.entered, key, before=student)
    stages.shown(number, "healed", after.entered, key)
    record = record.model_copy(
        update={
            "outcome": "folded",
            "healed": summary.summarise(healed, base, axis, resamples=resamples),
            "comparisons": (
                *record.comparisons,
                compare(healed, base, axis, base=base, resamples=resamples),
                compare(healed, steered, axis, base=base, resamples=resamples),
            ),
            "retain": summary.retain(healed, steered, before, resamples=resamples),
            "recovered": summary.recovered(healed, steered, before, resamples=resamples),
            "kl_round": summary.kl_to_previous(healed),
        }
    )
    return record, Position(after, healed, first)


def stop_reason(done: RoundRecord, floor: float) -> str:
    """Why the loop ends after this round; empty when it goes on."""
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
    return ""


def best_round(record: RunRecord, floor: float) -> int | None:
    """The folded round with the largest trait gain among those above the floor, if any gained."""
    fit = [
        done for done in record.rounds if done.healed is not None and done.healed.coherence >= floor
    ]
    gains = {done.round: done.healed.delta_logodds.value for done in fit if done.healed}
    best = max(gains, key=lambda number: gains[number], default=None)
    return best if best is not None and gains[best] > 0 else None
