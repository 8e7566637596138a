"""One round: vector, sweep, harvest, steered reading, heal, fold, reading, unsteered control.

It ends early where its text starves, its heal is rejected, or the user asked to see no more than a
check. What the checks see is noted as soon as it is there, and kept in the record.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, Self

from steerheal.checks import filtering, healing, moves, steering
from steerheal.measure import sight, summary
from steerheal.measure.compare import compare
from steerheal.measure.qualify import Qualification
from steerheal.pipeline.ends import Until
from steerheal.pipeline.stages import CONTROL, Stages
from steerheal.records import (
    Comparison,
    Control,
    Curve,
    Finding,
    Harvest,
    Reading,
    RoundRecord,
    Scores,
    Sight,
    Summary,
    Sweep,
)
from steerheal.state.values import Plain, State
from steerheal.state.vector import SteeringVector
from steerheal.tables import OBJECTIVES

NO_DOSE = (
    "what writes the text has no vector: there is no dose to walk, and check 1 reads it as it is"
)
UNREAD = Reading.unknown("the steered state was not read (read_steered is off)")
TAUGHT = (
    "by its objective a heal learns its teacher's distribution, and a student that is its own "
    "teacher has nothing to learn: the student before the round is the control"
)
REWARDED = (
    "by its objective a heal trains on the student's own text in any case: the student before the "
    "round is the control"
)
KEPT = 0.99
"""Share of its coherence that a student keeps of the last good one's to be the next."""
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
    """Where the loop stands: the student, its readings, and what the first round found."""

    student: State
    scores: Scores
    first: SteeringVector | None
    """Its vector."""
    sight: Sight | None = None
    """Which readings of coherence see, where its doses were read."""
    control: State | None = None
    """The last round's unsteered control, where one was folded."""
    good: State = Plain()
    """The student after the newest round that kept the coherence of the good one before it."""
    good_coherence: float = 1.0
    """Its coherence over the base's."""

    def kept(self, after: State, coherence: float) -> Self:
        """The same with a folded student, where it is the last good one."""
        if not coherence >= KEPT * self.good_coherence:
            return self
        return self._replace(good=after, good_coherence=coherence)

    @property
    def head(self) -> str:
        """What coherence is read by; empty where nothing was found."""
        return self.sight.head if self.sight else ""


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
    prompted: Scores | None = None
    """The base's under the persona's system prompt; None where they were not read."""

    def saw(self, record: RoundRecord, finding: Finding) -> RoundRecord:
        """The record with a finding, which is noted."""
        self.listener.note(f"{finding.check} · {finding.outcome}: {finding.words}")
        return record.model_copy(update={"findings": (*record.findings, finding)})

    def knee(self, stages: Stages, number: int, teacher: State) -> Curve | None:
        """The round's curve of doses, where one is read; its knee is noted."""
        found = stages.curve(number, teacher)
        if found is not None:
            self.listener.note(f"round {number + 1} · {found.words()}")
        return found

    def ends(self, check: Until) -> bool:
        """Whether the user asked to end here."""
        return self.until == check


def one_round(
    stages: Stages, number: int, place: Position, frame: Frame
) -> tuple[RoundRecord, Position]:
    """A round's record, and where the next one starts."""
    student = place.student
    vector = stages.vector(number, student)
    place = place._replace(first=place.first or vector)
    teacher = frame.teach(student, vector)
    curve, sweep = None, None
    if teacher.dose:
        curve = frame.knee(stages, number, teacher)
        sweep = stages.swept(number, student, vector, frame.scores, found=curve)
    else:
        frame.listener.note(f"round {number + 1} · {NO_DOSE}")
    if sweep is not None:
        place = place._replace(sight=seen_by(sweep, frame))
        sweep = sight.led_sweep(sweep.without_texts(), place.head)
    this = Round(stages, frame, place, sweep)
    record = this.begun(number, vector, curve)
    if sweep is not None and frame.ends("check1"):
        return record, place
    found = stages.harvest(number, teacher, curve)
    if found.passed_over:
        said = f"{len(found.kept())} texts chosen, {found.passed_over} that were kept passed over"
        frame.listener.note(f"round {number + 1} · {said}")
    record, steered = this.steered(record, teacher, found)
    if sweep is None and frame.ends("check1"):
        return record, place
    record = this.filtered(record, found)
    if record.outcome == "starved" or frame.ends("check2"):
        return record, place
    result = stages.healed(number, student, teacher, found, good=place.good)
    held_to = place.good.name if stages.config.heal.reference == "last_good" else ""
    record = record.model_copy(update={"heal": result.log, "held_to": held_to})
    if result.log.outcome == "rejected":
        return this.rejected(record), place
    after = student.folded(result.adapter, stages.config.gate)
    shift = stages.internalised(number, student, after, vector)
    record, scores = this.healed(record, after, steered)
    record = record.model_copy(update={"internalised": shift})
    control = None
    if stages.config.control:
        record, control = this.controlled(record, found, scores, steered)
    record = this.judged(record, scores)
    if record.healed is not None:
        place = place.kept(after, record.healed.coherence)
    return record, place._replace(student=after, scores=scores, control=control)


def seen_by(sweep: Sweep, frame: Frame) -> Sight | None:
    """Which readings of coherence see, which is noted."""
    found = sight.sight(sweep)
    if found is not None:
        frame.listener.note(sight.in_words(found, frame.scores.instrument))
    return found


@dataclass(frozen=True)
class Round:
    """A round's readings: each method gives the record as it has grown."""

    stages: Stages
    frame: Frame
    place: Position
    """Where it starts."""
    sweep: Sweep | None
    """Doses read before the first harvest."""

    @cached_property
    def start(self) -> Summary:
        """The student at the round's start against the base."""
        return self._summary(self.place.scores)

    def begun(self, number: int, vector: SteeringVector, curve: Curve | None) -> RoundRecord:
        """The vector, and check 1 where doses were read."""
        assert self.place.first is not None, "a round begins with a vector"
        record = RoundRecord(
            round=number,
            multiplier=math.nan,
            walk=(),
            kept=0,
            drawn=0,
            reasons={},
            outcome="stopped",
            vector_norms=vector.norms(),
            direction_cosine=vector.cosine(self.place.first),
            curve=curve,
            sweep=self.sweep,
            gate=self.stages.config.gate,
        )
        return record if self.sweep is None else self._steering(record, self.sweep)

    def steered(
        self, record: RoundRecord, teacher: State, found: Harvest
    ) -> tuple[RoundRecord, Scores | None]:
        """The walk, and the teacher at the dose that it came to, shown and read where asked for.

        Without a sweep that one reading is what check 1 sees.
        """
        stages, frame, number = self.stages, self.frame, record.round
        dose = found.multiplier * max(stages.config.dose.sweep)
        state = teacher.at_dose(dose) if teacher.dose else teacher
        record = record.model_copy(
            update={
                "written_by": state.name,
                "multiplier": found.multiplier,
                "walk": found.walk,
                "kept": len(found.kept()),
                "passed_over": found.passed_over,
                "drawn": len(found.judged),
                "reasons": found.reasons(),
            }
        )
        stages.shown(number, "steered", state)
        if not (stages.config.read_steered or (self.sweep is None and frame.ends("check1"))):
            return record, None
        scores = stages.evaluated(number, "steered", state, before=self.place.student)
        read, compared = self._summary(scores), self._compared(scores, frame.scores)
        record = record.model_copy(update={"steered": read, "comparisons": (compared,)})
        if self.sweep is None:
            record = self._steering(record, moves.sweep_of(read, frame.base, dose))
        return record, scores

    def filtered(self, record: RoundRecord, found: Harvest) -> RoundRecord:
        """Check 2, and whether there is enough to train on."""
        seen = filtering.evidence(found, self.frame.scores, self.sweep)
        record = self.frame.saw(record, filtering.CHECK.seen(seen))
        starved = {"outcome": "starved"} if found.outcome == "starved" else {}
        return record.model_copy(update=starved)

    def rejected(self, record: RoundRecord) -> RoundRecord:
        """Check 3 of a heal that is not folded."""
        return self._healing(record).model_copy(update={"outcome": "rejected"})

    def healed(
        self, record: RoundRecord, after: State, steered: Scores | None
    ) -> tuple[RoundRecord, Scores]:
        """The healed readings, and their rows.

        Args:
            record: The round up to its heal.
            after: The healed student.
            steered: The steered state's rows; None where they were not read.
        """
        stages, base, before = self.stages, self.frame.scores, self.place.scores
        scores = stages.evaluated(record.round, "healed", after, before=self.place.student)
        stages.shown(record.round, "healed", after)
        others, retain, recovered = [base], UNREAD, UNREAD
        if steered is not None:
            others.append(steered)
            axis = stages.persona.axis
            retain = summary.retain(scores, steered, before, axis)
            recovered = summary.recovered(scores, steered, before, axis, self.place.head)
        compared = [self._compared(scores, other) for other in others]
        record = record.model_copy(
            update={
                "outcome": "folded",
                "healed": self._summary(scores),
                "comparisons": (*record.comparisons, *compared),
                "retain": retain,
                "recovered": recovered,
                "kl_round": summary.kl_to_previous(scores),
            }
        )
        return record, scores

    def controlled(
        self, record: RoundRecord, found: Harvest, healed: Scores, steered: Scores | None
    ) -> tuple[RoundRecord, State | None]:
        """The unsteered control's readings beside the healed ones, and its student.

        Args:
            record: The round with its healed readings.
            found: The text that the healed student was trained on.
            healed: Its rows.
            steered: The steered state's rows; None where they were not read.
        """
        stages, place, number = self.stages, self.place, record.round
        aim = OBJECTIVES.find(stages.config.heal.objective)
        if not aim.controlled:
            reason = TAUGHT if aim.taught else REWARDED
            none = Control(texts=0, reused=0, unfiltered=0, reason=reason)
            return record.model_copy(update={"control": none}), None
        texts = stages.unsteered(number, place.student, found)
        result = stages.healed_control(number, place.student, texts, good=place.good)
        control = Control(
            texts=len(texts.texts),
            reused=texts.reused,
            unfiltered=texts.unfiltered,
            reason=result.log.reason,
        )
        if result.log.outcome == "rejected":
            return record.model_copy(update={"control": control}), None
        after = place.student.folded(result.adapter, stages.config.gate)
        scores = stages.evaluated(number, CONTROL, after)
        pairs = ((scores, self.frame.scores), (healed, scores))
        retain, axis = UNREAD, stages.persona.axis
        if steered is not None:
            retain = summary.retain(healed, steered, place.scores, axis, control=scores)
        update = {
            "control": control.model_copy(update={"read": self._summary(scores), "retain": retain}),
            "comparisons": (*record.comparisons, *(self._compared(*pair) for pair in pairs)),
        }
        return record.model_copy(update=update), after

    def judged(self, record: RoundRecord, healed: Scores) -> RoundRecord:
        """Check 3 of a folded heal, by its readings and their rows."""
        states, persona = (healed, self.frame.scores), self.stages.persona
        said = [healing.narration(state, persona) for state in states]
        return self._healing(record, narration=(said[0], said[1]))

    def _summary(self, scores: Scores) -> Summary:
        frame, axis = self.frame, self.stages.persona.axis
        read = summary.summarise(scores, frame.scores, axis, frame.prompted)
        return sight.led(read, self.place.head)

    def _compared(self, scores: Scores, other: Scores) -> Comparison:
        found = compare(scores, other, self.stages.persona.axis, base=self.frame.scores)
        return sight.headed(found, self.place.head)

    def _steering(self, record: RoundRecord, sweep: Sweep) -> RoundRecord:
        axis = self.stages.persona.axis
        seen = steering.evidence(sweep, self.frame.sees, axis, self.start)
        return self.frame.saw(record, steering.CHECK.seen(seen))

    def _healing(self, record: RoundRecord, **more: tuple[float, float]) -> RoundRecord:
        config, axis = self.stages.config, self.stages.persona.axis
        seen = healing.evidence(record, self.start, config.heal, axis, base=self.frame.base, **more)
        return self.frame.saw(record, healing.CHECK.seen(seen))
