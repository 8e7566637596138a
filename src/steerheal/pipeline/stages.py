"""The stages of a run, each behind the store: a result is made once per key of its inputs.

A state's key stands for all that made it, whatever it is.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from steerheal import prompts
from steerheal.code import key_of, made_by
from steerheal.config import Instrument, RunConfig
from steerheal.filter.rules import calibrated, judge, weights
from steerheal.filter.scores import seen_by
from steerheal.heal.checkpoint import Checkpoint
from steerheal.heal.teacher import taught
from steerheal.heal.train import Healed, heal_student, training_pairs
from steerheal.measure import instruments, sweep
from steerheal.measure.auto import resolve
from steerheal.measure.evaluate import answer_test, evaluate, size
from steerheal.measure.qualify import Qualification
from steerheal.models.generate import Draw, generate, write
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states
from steerheal.personas import Persona
from steerheal.pipeline.stage_store import Store
from steerheal.pipeline.walk import harvest
from steerheal.records import (
    Calibration,
    Completion,
    Harvest,
    HealLog,
    HealStep,
    Internalisation,
    Record,
    Scores,
    Shown,
    Sweep,
    Verdict,
)
from steerheal.state.adapter import Adapter
from steerheal.state.fold import assert_alive
from steerheal.state.values import State, base, entered
from steerheal.state.vector import SteeringVector
from steerheal.steer import internalise
from steerheal.steer.equal import equal_kl
from steerheal.steer.methods.registry import find
from steerheal.steer.vector import extract
from steerheal.store import (
    TEST,
    read_harvest_folder,
    read_record,
    write_harvest,
    write_record,
)

ADAPTER, HEAL, SWEEP, VECTOR = "adapter", "heal.json", "sweep.json", "vector.safetensors"
CALIBRATION, SHIFT = "calibration.json", "internalised.json"
BASE = -1
"""The base's place among the rounds, which count from 0."""


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


def stage_key(stage: str, *inputs: object) -> str:
    """A stage's key: digest of its inputs, then of the code that makes it of them."""
    return f"{key_of(stage, *inputs)}-{made_by(stage)}"


class Tried(Record):
    """Which instrument was chosen, and what was tried."""

    instrument: Instrument
    tried: tuple[Qualification, ...]


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
        key = stage_key(
            "qualify", self.chat.fingerprint, measure, instruments.texts(measure), self.persona.axis
        )
        file = "instrument.json"

        def make() -> Tried:
            with self._bar(BASE, "choosing an instrument", 1):
                resolved = resolve(self.chat, measure, self.persona.axis)
            return Tried(instrument=resolved.settings.instrument, tried=resolved.tried)

        found = self.store.stage(
            "qualify",
            BASE,
            key,
            make=make,
            save=lambda folder, tried: write_record(folder / file, tried),
            load=lambda folder: read_record(folder / file, Tried),
        )
        chosen = measure.model_copy(update={"instrument": found.instrument})
        config = self.config.model_copy(update={"measure": chosen})
        return replace(self, config=config, tried=found.tried)

    def evaluated(
        self,
        number: int,
        role: str,
        state: State,
        *,
        before: State | None = None,
    ) -> Scores:
        """Readings of a state, and how far it is from the student before the round."""
        measure, seed = self.config.measure, self.config.seed
        full_key = stage_key(
            "evaluate", self.chat.fingerprint, role, state.key, measure, self.config.sampling,
            seed, self.persona, before.key if before else None, instruments.texts(measure),
        )  # fmt: skip
        total = size(measure, self.persona)

        def make() -> Scores:
            with self._bar(number, f"reading {role}", total) as progress:
                return evaluate(
                    self.chat,
                    role,
                    state,
                    self.persona,
                    measure,
                    sampling=self.config.sampling,
                    seed=seed,
                    previous=before,
                    progress=progress,
                )

        file = "scores.json" if number == BASE else f"{role}.json"
        return self.store.stage(
            f"evaluate-{role}",
            number,
            full_key,
            make=make,
            save=lambda folder, scores: write_record(folder / file, scores),
            load=lambda folder: read_record(folder / file, Scores),
        )

    def tested(self, number: int, role: str, state: State) -> Scores:
        """A state's answers to the test prompts."""
        measure, sampling, seed = self.config.measure, self.config.sampling, self.config.seed
        persona, asked = self.persona, self.persona.prompts.test[: self.config.measure.prompts]
        full_key = stage_key(
            "test", self.chat.fingerprint, role, state.key, measure.instrument, measure.tokens,
            sampling, seed, asked, persona.positive, persona.negative,
        )  # fmt: skip

        def make() -> Scores:
            with self._bar(number, f"testing {role}", len(asked)) as progress:
                return answer_test(
                    self.chat, role, state, persona, measure,
                    sampling=sampling, seed=seed, progress=progress,
                )  # fmt: skip

        return self.store.stage(
            f"test-{role}",
            number,
            full_key,
            make=make,
            save=lambda folder, scores: write_record(folder / TEST, scores),
            load=lambda folder: read_record(folder / TEST, Scores),
        )

    def shown(self, number: int, role: str, state: State) -> Shown:
        """The fixed show prompts, answered greedily: what differs is the state, not the draw."""
        asked, seed = self.persona.prompts.show, self.config.seed
        sampling = self.config.sampling.model_copy(update={"temperature": 0.0})
        full_key = stage_key("show", self.chat.fingerprint, role, state.key, sampling, seed, asked)

        def make() -> Shown:
            draws = [Draw(prompt, seed=seed * 7_919 + i) for i, prompt in enumerate(asked)]
            bar = self._bar(number, f"showing {role}", len(asked))
            with bar as progress, state.entered(self.chat) as reader:
                said = generate(reader, draws, sampling, keep_broken=True, progress=progress)
            return Shown(state=role, completions=tuple(said))

        file = "shown.json" if number == BASE else f"shown-{role}.json"
        return self.store.stage(
            f"show-{role}",
            number,
            full_key,
            make=make,
            save=lambda folder, shown: write_record(folder / file, shown),
            load=lambda folder: read_record(folder / file, Shown),
        )

    def vector(self, number: int, student: State) -> SteeringVector:
        """The student's steering vector."""
        settings, persona = self.config.vector, self.persona
        chosen = prompts.first_contexts(settings.contexts)
        poles = (persona.positive, persona.negative, persona.neutral)
        key = stage_key("vector", self.chat.fingerprint, student.key, settings, chosen, poles)
        rows = find(settings.method).rows(settings, len(chosen))

        def make() -> SteeringVector:
            with self._bar(number, "vector", rows) as progress:
                return extract(self.chat, persona, chosen, settings, progress, student=student)

        return self.store.stage(
            "vector",
            number,
            key,
            make=make,
            save=lambda folder, value: value.save(folder / VECTOR),
            load=lambda folder: SteeringVector.load(folder / VECTOR),
        )

    def swept(
        self, number: int, student: State, vector: SteeringVector, zero: Scores
    ) -> Sweep | None:
        """The first round's student under the doses of the check; None in later rounds.

        Without a finite KL of the largest dose to match there is no control. `zero` gives dose 0
        its vignettes and canary, and the control the texts that it is matched on.
        """
        check, config = self.config.check, self.config
        if number > 0 or not check.doses:
            return None
        doses = [config.dose.start * multiple for multiple in check.doses]
        texts = [row.completion for row in zero.persona[: check.base_texts]]
        steered = student.steered(vector, max(doses))
        ask = sweep.asked(self.persona, check, config.measure, config.sampling, config.seed)
        full_key = stage_key(
            "sweep", self.chat.fingerprint, steered.key, check, doses, config.measure, ask.sampling,
            config.seed, self.persona, instruments.texts(config.measure),
            [(text.prompt, text.tokens) for text in texts],
        )  # fmt: skip

        def control() -> tuple[float, State] | None:
            found = equal_kl(self.chat, student, steered, texts, seed=config.seed)
            if found.vector is None:
                return None
            return max(doses), student.steered(found.vector, 1.0)

        def make() -> Sweep:
            levels = 1 + len(set(doses)) + check.control
            with self._bar(number, "sweep of doses", levels * ask.rows) as progress:
                return sweep.sweep(
                    self.chat,
                    steered,
                    doses,
                    ask,
                    control=control() if check.control else None,
                    known=zero,
                    progress=progress,
                )

        return self.store.stage(
            "sweep",
            number,
            full_key,
            make=make,
            save=lambda folder, found: write_record(folder / SWEEP, found),
            load=lambda folder: read_record(folder / SWEEP, Sweep),
        )

    def calibrated(self) -> tuple[Calibration, str]:
        """The filter's limits on the base's own text, and their key."""
        config, persona = self.config, self.persona
        seed, asked = config.seed * 1_009 + BASE, persona.prompts.train
        key = stage_key(
            "calibrate", self.chat.fingerprint, config.sampling, config.filter, seed, asked,
            persona.positive, persona.negative, weights(),
        )  # fmt: skip
        count = config.filter.calibration_texts
        draws = [Draw(asked[i % len(asked)], seed=seed * 1_000_003 + i) for i in range(count)]

        def make() -> Calibration:
            with self._bar(BASE, "calibrating the filter", count) as progress:
                said = generate(self.chat, draws, config.sampling, progress=progress)
                odds = config.filter.trait > 0
                seen = seen_by(self.chat, said, persona, logodds=odds)
            return calibrated(said, seen, persona, config.filter)

        found = self.store.stage(
            "calibrate",
            BASE,
            key,
            make=make,
            save=lambda folder, value: write_record(folder / CALIBRATION, value),
            load=lambda folder: read_record(folder / CALIBRATION, Calibration),
        )
        return found, key

    def harvest(self, number: int, teacher: State) -> tuple[Harvest, str]:
        """What the teacher writes in the round, judged, and its key; its dose is walked."""
        config, persona = self.config, self.persona
        calibration, limits_key = self.calibrated()
        seed = config.seed * 1_009 + number
        full_key = stage_key(
            "harvest", self.chat.fingerprint, teacher.key, limits_key, config.dose, config.push,
            config.sampling, config.filter, seed, persona.prompts.train, persona.positive,
            persona.negative,
        )  # fmt: skip

        def draw(
            states: Sequence[State], draws: Sequence[Draw]
        ) -> list[tuple[Completion, Verdict]]:
            top = max((state.dose for state in states), key=abs)
            title = f"sampling, dose up to {top:.3g}" if top else "sampling"
            bar = self._bar(number, title, len(draws))
            with bar as progress, entered(self.chat, states) as writer:
                said, drawn = write(
                    writer,
                    draws,
                    config.sampling,
                    push=config.push,
                    keep_states=True,
                    keep_broken=True,
                    progress=progress,
                )
            odds = config.filter.read_trait
            seen = seen_by(self.chat, said, persona, drawn, writer=writer, logodds=odds)
            found = judge(said, seen, persona, calibration=calibration, settings=config.filter)
            return list(zip(said, found, strict=True))

        def make() -> Harvest:
            return harvest(
                draw,
                teacher,
                persona.prompts.train,
                config.dose,
                rows=config.sampling.rows,
                seed=seed,
                calibration=calibration,
            )

        found = self.store.stage(
            "harvest", number, full_key, make=make, save=write_harvest, load=read_harvest_folder
        )
        return found, full_key

    def healed(
        self, number: int, student: State, teacher: State, found: Harvest, key: str
    ) -> Healed:
        """The round's adapter and how it was trained; `key` is the harvest's.

        A heal that was cut off goes on from its last epoch.
        """
        config, settings = self.config, self.config.heal
        kept = found.kept(config.dose.want)
        # LoRA that started from the last round's A would stay in its input directions.
        seed = config.seed + 1_009 * number
        full_key = stage_key("heal", key, student.key, settings, seed, number, len(kept))

        checkpoint = Checkpoint(self.store.scratch("heal", full_key), self.watcher.note)

        def make() -> Healed:
            pairs = training_pairs(self.chat, kept)
            origin = student if settings.reference == "prev" else base()
            reference = lesson = None
            if settings.barrier != "nll":
                with origin.entered(self.chat) as reader:
                    reference = continuation_states(reader, pairs)
            if settings.objective == "distill":
                lesson = taught(self.chat, teacher, kept)
            with student.entered(self.chat):
                healed = heal_student(
                    self.chat,
                    pairs,
                    reference,
                    settings,
                    teacher=lesson.states if lesson else None,
                    taught_by=lesson.reader if lesson else None,
                    round_number=number,
                    seed=seed,
                    checkpoint=checkpoint,
                    progress=lambda step, of: self.watcher.heal_step(number, step, of),
                )
                if healed.log.outcome == "trained":
                    prefix, rest = pairs[0]
                    alive = assert_alive(self.chat, healed.adapter, [*prefix, *rest])
                    if not math.isfinite(alive.change):
                        # Without held-out completions only this shows what the last update did.
                        reason = (
                            "training diverged: the logits at gate 1 are not finite; learning rate "
                            f"{settings.lr:g} is too high"
                        )
                        log = healed.log.model_copy(
                            update={"outcome": "rejected", "reason": reason}
                        )
                        healed = Healed(healed.adapter, log)
            return healed

        def save(folder: Path, healed: Healed) -> None:
            adapter, chat = healed.adapter, self.chat
            adapter.save(folder / ADAPTER, base=chat.name, trained_on=chat.origin)
            write_record(folder / HEAL, healed.log)

        result = self.store.stage(
            "heal",
            number,
            full_key,
            make=make,
            save=save,
            load=lambda folder: Healed(
                Adapter.load(folder / ADAPTER), read_record(folder / HEAL, HealLog)
            ),
        )
        checkpoint.remove()
        return result

    def internalised(
        self, number: int, before: State, after: State, vector: SteeringVector
    ) -> Internalisation:
        """How much of the round's vector the healed student does by itself.

        Read on the first of the vector's own contexts.
        """
        chosen = prompts.contexts()[: min(self.config.vector.contexts, internalise.CONTEXTS)]
        neutral = self.persona.neutral
        full_key = stage_key(
            "internalise",
            self.chat.fingerprint,
            vector.digest,
            before.key,
            after.key,
            chosen,
            neutral,
        )

        def make() -> Internalisation:
            with self._bar(number, "shift against the vector", 2 * len(chosen)) as progress:
                return internalise.internalised(
                    self.chat,
                    before,
                    after,
                    vector,
                    contexts=chosen,
                    neutral=neutral,
                    progress=progress,
                )

        return self.store.stage(
            "internalise",
            number,
            full_key,
            make=make,
            save=lambda folder, found: write_record(folder / SHIFT, found),
            load=lambda folder: read_record(folder / SHIFT, Internalisation),
        )

    def _bar(
        self, number: int, title: str, total: int
    ) -> AbstractContextManager[Callable[[int], None]]:
        place = "base" if number == BASE else f"round {number + 1}"
        return self.watcher.stage(f"{place} · {title}", total)
