"""The stages of a run: what each is made of, and the run's own inputs to it, behind the store.

A result is made once per key of its inputs; whatever comes out alike remakes nothing.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Protocol, TypeVar

from steerheal import prompts, streams
from steerheal.code import key_of
from steerheal.config import DoseSettings, HealSettings, RunConfig
from steerheal.filter.calibrate import seed_of
from steerheal.filter.coherent import CoherenceRules
from steerheal.filter.reward import TraitAndRules
from steerheal.heal.checkpoint import Checkpoint
from steerheal.heal.train import Healed
from steerheal.measure.evaluate import prompted_size, size
from steerheal.measure.qualify import Qualification
from steerheal.models.model import ChatModel
from steerheal.personas import Persona
from steerheal.pipeline.declared import (
    BASE,
    CALIBRATE,
    CONTROL,
    CURVE,
    EVALUATE,
    HARVEST,
    HEALED,
    HEALED_CONTROL,
    INTERNALISE,
    PROMPTED,
    QUALIFY,
    SHOW,
    STAGES,
    SWEEP,
    TESTED,
    UNSTEERED,
    VECTOR,
)
from steerheal.pipeline.stage import Made, Stage, record
from steerheal.pipeline.stage_store import Store
from steerheal.records import (
    Calibrated,
    Calibration,
    Completion,
    Curve,
    Harvest,
    HealStep,
    Internalisation,
    Scores,
    Shown,
    Sweep,
    Unsteered,
)
from steerheal.state.adapter import Adapter
from steerheal.state.values import State
from steerheal.state.vector import SteeringVector
from steerheal.steer.internalise import CONTEXTS
from steerheal.steer.methods.find import find
from steerheal.steer.sweep import rows
from steerheal.store import TEST
from steerheal.streams import stream
from steerheal.tables import OBJECTIVES

T = TypeVar("T")


def all_of_it() -> str:
    """Digest of what makes any stage, for the record of a run."""
    return key_of([stage.code for stage in STAGES])[:12]


class Watcher(Protocol):
    """Who is told how a run goes."""

    def stage(self, title: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Opens a bar of `total` rows for a stage; the callable advances it."""
        ...

    def heal_step(self, number: int, step: HealStep, of: int) -> None:
        """One optimiser step of round `number` is done."""
        ...

    def note(self, text: str) -> None:
        """Something the user must know."""
        ...


@dataclass(frozen=True)
class Stages:
    """One run's stages: each method makes or finds one result."""

    config: RunConfig
    persona: Persona
    chat: ChatModel
    store: Store
    watcher: Watcher
    tried: tuple[Qualification, ...] = ()
    """Instruments that `auto` tried on the base."""

    def measuring(self) -> "Stages":
        """These stages with an instrument that can see on this model, resolved on the base."""
        measure = self.config.measure
        if measure.instrument != "auto":
            return self
        made = QUALIFY.of(self.chat, measure, self.persona.axis)
        found = self.barred(made, BASE, "choosing an instrument", 1)
        chosen = measure.model_copy(update={"instrument": found.instrument})
        config = self.config.model_copy(update={"measure": chosen})
        return replace(self, config=config, tried=found.tried)

    def evaluated(
        self, number: int, role: str, state: State, *, before: State | None = None
    ) -> Scores:
        """Readings of a state, and how far it is from the student before the round."""
        config, persona = self.config, self.persona
        measure = config.measure.of_the_trait() if role == CONTROL else config.measure
        file = "scores.json" if number == BASE else f"{role}.json"
        made = EVALUATE.called(role, record(file, Scores)).of(
            self.chat, role, state, persona, measure,
            sampling=config.sampling, seed=config.seed, previous=before, rules=self.rules,
        )  # fmt: skip
        return self.barred(made, number, f"reading {role}", size(measure, persona))

    def prompted(self) -> Scores | None:
        """The base under the persona's system prompt; None where it is not to be read."""
        config, persona = self.config, self.persona
        if not config.read_prompted:
            return None
        measure, how = config.measure, {"sampling": config.sampling, "seed": config.seed}
        made = PROMPTED.of(self.chat, persona, measure, **how)
        return self.barred(made, BASE, "reading the prompt", prompted_size(measure, persona))

    def tested(self, number: int, role: str, state: State) -> Scores:
        """A state's answers to the test prompts."""
        config, persona = self.config, self.persona
        file = f"{CONTROL}/{TEST}" if role == CONTROL else TEST
        made = TESTED.called(role, record(file, Scores)).of(
            self.chat, role, state, persona, config.measure,
            sampling=config.sampling, seed=config.seed,
        )  # fmt: skip
        asked = persona.prompts.test[: config.measure.prompts]
        return self.barred(made, number, f"testing {role}", len(asked))

    def shown(self, number: int, role: str, state: State) -> Shown:
        """The fixed show prompts, answered."""
        config, asked = self.config, self.persona.prompts.show
        file = "shown.json" if number == BASE else f"shown-{role}.json"
        made = SHOW.called(role, record(file, Shown)).of(
            self.chat, role, state, asked, sampling=config.sampling, seed=config.seed
        )
        return self.barred(made, number, f"showing {role}", len(asked))

    def vector(self, number: int, student: State) -> SteeringVector:
        """The student's steering vector."""
        settings = self.config.vector
        chosen = prompts.first_contexts(settings.contexts)
        made = VECTOR.of(self.chat, self.persona, chosen, settings, student=student)
        return self.barred(
            made, number, "vector", find(settings.method).rows(settings, len(chosen))
        )

    def curve(self, number: int, teacher: State) -> Curve | None:
        """Coherence over the teacher's doses; None where there is none, or the start is given."""
        config = self.config
        if config.dose.start != "auto" or not teacher.dose:
            return None
        made = CURVE.of(
            self.chat, teacher, self.persona, self.calibrated,
            dose=config.dose, push=config.push, sampling=config.sampling,
            rules=config.filter.rules, seed=stream(config.seed, streams.CURVE, number),
        )  # fmt: skip
        return self.made(made, number, bar=partial(self._bar, number))

    def swept(
        self,
        number: int,
        student: State,
        vector: SteeringVector,
        zero: Scores,
        *,
        found: Curve | None = None,
    ) -> Sweep | None:
        """The first round's student under the doses of check 1; None in later rounds.

        Args:
            number: The round, from 0.
            student: What is steered.
            vector: The round's.
            zero: The student's own evaluation.
            found: The curve that says what the doses are multiples of, where none was given.
        """
        config, check, persona = self.config, self.config.check, self.persona
        if number > 0 or not check.doses:
            return None
        start = self._dose(found).start
        assert not isinstance(start, str)
        doses = [start * multiple for multiple in check.doses]
        made = SWEEP.of(
            self.chat, student, vector, doses, zero,
            persona=persona, check=check, measure=config.measure, sampling=config.sampling,
            seed=config.seed, rules=self.rules,
        )  # fmt: skip
        total = rows(doses, persona, check, config.measure, config.sampling)
        return self.barred(made, number, "sweep of doses", total)

    @property
    def calibrated(self) -> Calibration:
        """The filter's limits on the base's own text."""
        return self._calibrated.limits

    @cached_property
    def _calibrated(self) -> Calibrated:
        """They and the text, one stage of the run however often used."""
        config = self.config
        made = CALIBRATE.of(
            self.chat, self.persona, config.sampling, config.filter.rules, seed=seed_of(config.seed)
        )
        texts = config.filter.calibration_texts
        return self.barred(made, BASE, "calibrating the filter", texts)

    @cached_property
    def rules(self) -> CoherenceRules:
        """What tells coherent answers on this model."""
        return CoherenceRules(self.persona, self.calibrated, self.config.filter.rules)

    def _dose(self, found: Curve | None) -> DoseSettings:
        """The settings of the dose, with a number to start at."""
        dose = self.config.dose
        if dose.start != "auto":
            return dose
        return dose.model_copy(update={"start": 1.0 if found is None else found.dose})

    def harvest(self, number: int, teacher: State, found: Curve | None = None) -> Harvest:
        """What the teacher writes in the round, judged; its dose is walked from the knee down."""
        config = self.config
        made = HARVEST.of(
            self.chat, teacher, self.persona, self.calibrated,
            dose=self._dose(found), push=config.push, sampling=config.sampling,
            rules=config.filter, seed=stream(config.seed, streams.HARVEST, number),
        )  # fmt: skip
        return self.made(made, number, bar=partial(self._bar, number))

    def unsteered(self, number: int, student: State, found: Harvest) -> Unsteered:
        """What the round's student answers, without a vector, to the prompts of the kept text."""
        config = self.config
        asked = [item.prompt for item in found.kept(config.dose.want)]
        made = UNSTEERED.of(
            self.chat, student, self.persona, asked, self._calibrated,
            tries=config.dose.batches, sampling=config.sampling,
            rules=config.filter.rules, seed=stream(config.seed, streams.UNSTEERED, number),
        )  # fmt: skip
        return self.made(made, number, bar=partial(self._bar, number))

    def healed(
        self,
        number: int,
        student: State,
        teacher: State,
        found: Harvest,
        *,
        good: State | None = None,
    ) -> Healed:
        """The round's adapter and how it was trained; `good` is the last good student."""
        less = None
        if self.config.heal.subtract and not self.config.heal.subtracts_opposite:
            own = self.unsteered(number, student, found)
            control = self.healed_control(number, student, own, good=good)
            if control.log.outcome == "rejected":
                return control
            less = control.adapter
        texts = found.kept(self.config.dose.want)
        return self._healed(
            HEALED, number, student, teacher, texts, how=self.config.heal, good=good, less=less
        )

    @property
    def _reward(self) -> TraitAndRules | None:
        """What the heal's objective rewards, if it does."""
        if not OBJECTIVES.find(self.config.heal.objective).rewarded:
            return None
        return TraitAndRules(self.persona, self.calibrated, self.config.filter.rules)

    def healed_control(
        self, number: int, student: State, found: Unsteered, *, good: State | None = None
    ) -> Healed:
        """The same on what the student wrote itself."""
        return self._healed(
            HEALED_CONTROL, number, student, student, found.texts,
            how=self.config.heal.of_control, good=good,
        )  # fmt: skip

    def _healed(
        self,
        stage: Stage[..., Healed],
        number: int,
        student: State,
        teacher: State,
        texts: Sequence[Completion],
        *,
        how: HealSettings,
        good: State | None,
        less: Adapter | None = None,
    ) -> Healed:
        """A heal; one that was cut off goes on from its last epoch."""
        config = self.config
        # LoRA that started from the last round's A would stay in its input directions.
        seed = config.seed + 1_009 * number
        made = stage.of(
            self.chat, student, teacher, texts, how, number=number, seed=seed,
            good=good if config.heal.reference == "last_good" else None, less=less,
            sampling=config.sampling if how.writes else None, reward=self._reward,
        )  # fmt: skip
        checkpoint = Checkpoint(self.store.scratch(stage.name, made.key), self.watcher.note)
        step = partial(self.watcher.heal_step, number)
        result = self.made(made, number, checkpoint=checkpoint, progress=step)
        checkpoint.remove()
        return result

    def internalised(
        self, number: int, before: State, after: State, vector: SteeringVector
    ) -> Internalisation:
        """How much of the round's vector the healed student does by itself.

        Read on the first of the vector's own contexts.
        """
        chosen = prompts.contexts()[: min(self.config.vector.contexts, CONTEXTS)]
        made = INTERNALISE.of(
            self.chat, before, after, vector, contexts=chosen, neutral=self.persona.neutral
        )
        return self.barred(made, number, "shift against the vector", 2 * len(chosen))

    def made(self, made: Made[T], number: int, **hears: object) -> T:
        """The stage's artifact, made or found; `hears` is who hears how it is made."""
        return self._kept(made, number, partial(made.make, **hears))

    def barred(self, made: Made[T], number: int, title: str, total: int) -> T:
        """A stage's artifact, made under one bar or found."""
        return self._kept(made, number, partial(self._under_bar, made, number, title, total))

    def _under_bar(self, made: Made[T], number: int, title: str, total: int) -> T:
        with self._bar(number, title, total) as progress:
            return made.make(progress=progress)

    def _kept(self, made: Made[T], number: int, make: Callable[[], T]) -> T:
        name, artifact = made.stage.name, made.stage.artifact
        return self.store.stage(
            name, number, made.key, make=make, save=artifact.save, load=artifact.load
        )

    def _bar(
        self, number: int, title: str, total: int
    ) -> AbstractContextManager[Callable[[int], None]]:
        place = "base" if number == BASE else f"round {number + 1}"
        return self.watcher.stage(f"{place} · {title}", total)
