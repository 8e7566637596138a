"""Every stage of a run with what it reads, writes and trains on, before the first one is made."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from steerheal import prompts
from steerheal.config import HealSettings, MeasureSettings, RunConfig
from steerheal.measure import auto, coherence, damage, tasks, vignettes
from steerheal.measure.evaluate import trait_vignettes
from steerheal.measure.sweep import asked as asked_of_doses
from steerheal.models.model import ChatModel
from steerheal.personas import Persona
from steerheal.pipeline import stages
from steerheal.pipeline.ends import Until
from steerheal.pipeline.stage import Stage
from steerheal.pipeline.stages import BASE, CONTROL
from steerheal.pipeline.walk import SPARE
from steerheal.pipeline.work import Passes, Work
from steerheal.steer.internalise import CONTEXTS
from steerheal.steer.methods.find import find
from steerheal.steer.teachers.find import find as teacher
from steerheal.tables import OBJECTIVES

SURVIVES = 0.75
"""Share of a round's draws that is taken to survive the filter."""
ASSUMED = (
    f"answers as long as they may get; {SURVIVES:.0%} of the draws survive the filter at the first "
    "dose that is tried; every round takes place"
)
"""What only the run itself finds out."""
MATCHING = 10
"""Looks at the base's texts until a random vector's KL is that of the dose it is held against."""
JUDGED, COMPARED, EXPECTED = 2.5, 2.0, 3.0
"""Distributions per position: of a token with its entropy and its KL, of a KL alone, and of an
expectation over two poles."""


@dataclass(frozen=True)
class StageWork:
    """One stage of a run and what it does."""

    name: str
    round: int
    """From 0; that of the base is `stages.BASE`."""
    work: Work
    written: int = 0
    """Longest text that it writes in a batch, in tokens beyond the prompt."""
    folded: bool = False
    """Whether a history is folded into the weights."""


@dataclass(frozen=True)
class Counted:
    """Counts the stages of one run, whose instrument is resolved."""

    chat: ChatModel
    persona: Persona
    config: RunConfig
    chosen: MeasureSettings | None = None
    """The settings before `auto` was resolved, where it was: its trial is a stage as well."""

    @cached_property
    def passes(self) -> Passes:
        """Counts passes over texts."""
        return Passes(self.chat, self.config.sampling.rows)

    def stages(self, until: Until | None = None) -> list[StageWork]:
        """Every stage in the order in which it is made, up to the end of a check."""
        first = [] if self.chosen is None else [self._qualified(self.chosen)]
        found = [*first, self._calibrated(), self._evaluated(BASE, "base"), self._shown(BASE)]
        found += [self._prompted()] if self.config.read_prompted else []
        for number in range(self.config.rounds):
            found += self._round(number, until)
            if until is not None:
                return found
        if self.persona.prompts.test:
            last = self.config.rounds - 1
            found += [self._tested(BASE, "base"), self._tested(last, "healed")]
            found += [self._tested(last, CONTROL)] if self._controlled else []
        return found

    @property
    def _controlled(self) -> bool:
        """Whether every heal has its unsteered control."""
        return self.config.control and OBJECTIVES.find(self.config.heal.objective).controlled

    def _round(self, number: int, until: Until | None) -> list[StageWork]:
        config = self.config
        dosed = teacher(config.teacher).dosed
        swept = dosed and number == 0 and bool(config.check.doses)
        found = [self._vector(number)]
        if dosed and config.dose.start == "auto":
            found.append(self._curve(number))
        if swept:
            found.append(self._swept(number))
            if until == "check1":
                return found
        found += [self._harvested(number), self._shown(number, "steered")]
        if config.read_steered or until == "check1":
            found.append(self._evaluated(number, "steered"))
        if until is not None:
            return found
        healed, before, control = self._healed(number, config.heal), [], []
        other = self._healed(number, config.heal.of_control)
        again = [self._unsteered(number), replace(other, name=stages.HEALED_CONTROL.name)]
        if self._controlled:
            control = [self._evaluated(number, CONTROL)]
        if config.heal.subtract and not config.heal.subtracts_opposite:
            before = again
        elif self._controlled:
            control = again + control
        return [
            *found,
            *before,
            healed,
            self._internalised(number),
            self._evaluated(number, "healed"),
            self._shown(number, "healed"),
            *control,
        ]

    @staticmethod
    def _of_role(
        stage: Stage[..., Any], role: str, number: int, work: Work, written: int
    ) -> StageWork:
        """A stage of what is read in one of several roles."""
        folded = number > 0 or role in ("healed", CONTROL)
        return StageWork(f"{stage.name}-{role}", number, work, written, folded)

    def _qualified(self, measure: MeasureSettings) -> StageWork:
        work = Work()
        for trial in auto.trials(measure):
            work += self.passes.vignettes(vignettes.chosen(trial), trial)
            if trial.instrument == self.config.measure.instrument:
                break
        return StageWork(stages.QUALIFY.name, BASE, work, auto.THINK)

    def _calibrated(self) -> StageWork:
        config, texts = self.config, self.persona.prompts.train
        count, tokens = config.filter.calibration_texts, config.sampling.tokens
        work = self.passes.written(texts, count, tokens)
        work += self.passes.scored(texts, count, tokens, 1)
        if config.filter.trait:
            work += self.passes.under_poles(texts, count, tokens, 1, self._poles)
        return StageWork(stages.CALIBRATE.name, BASE, work, tokens)

    def _evaluated(self, number: int, role: str) -> StageWork:
        measure, passes = self.config.measure, self.passes
        if role == CONTROL:
            measure = measure.of_the_trait()
        asked = self.persona.prompts.evaluate[: measure.prompts]
        count, tokens = len(asked), measure.tokens
        open_ended = prompts.lines("open")[: measure.long_prompts]
        replies = prompts.lines("json")[: measure.json_prompts]
        task_prompts = [task.prompt for task in tasks.load()[: measure.tasks]]
        work = (
            passes.vignettes(vignettes.chosen(measure), measure)
            + passes.canary(coherence.asked(measure))
            + passes.documents()
            + self._answered(asked, tokens)
            + passes.written(open_ended, len(open_ended), measure.long_tokens)
            + passes.scored(open_ended, len(open_ended), measure.long_tokens, 1)
            + passes.written(replies, len(replies), damage.JSON_TOKENS)
            + passes.written(task_prompts, len(task_prompts), measure.task_tokens)
            + self._spilt(number, measure)
        )
        for pair in self.persona.pairs("held_out")[: measure.held_out_pairs]:
            poles = (pair.positive, pair.negative)
            work += passes.under_poles(asked, count, tokens, EXPECTED / 2, poles)
        if number > 0 and role != CONTROL:  # the student before the round reads the answers as well
            work += passes.scored(asked, count, tokens, COMPARED)
        longest = max(tokens, measure.long_tokens if open_ended else 0)
        return self._of_role(stages.EVALUATE, role, number, work, longest)

    def _prompted(self) -> StageWork:
        measure = self.config.measure
        work = self.passes.vignettes(trait_vignettes(measure), measure)
        work += self._answered(self.persona.prompts.evaluate[: measure.prompts], measure.tokens)
        return StageWork(stages.PROMPTED.name, BASE, work, measure.tokens)

    def _spilt(self, number: int, measure: MeasureSettings) -> Work:
        """The base writes the texts, and every state is compared with it on them."""
        control = prompts.control_held_out()[: measure.control_prompts]
        if number == BASE:
            return self.passes.written(control, len(control), measure.control_tokens)
        return self.passes.scored(control, len(control), measure.control_tokens, 1) * COMPARED

    def _answered(self, asked: Sequence[str], tokens: int, *, levels: int = 1) -> Work:
        """Free answers, written and judged by the base."""
        count, passes = levels * len(asked), self.passes
        return (
            passes.written(asked, count, tokens)
            + passes.scored(asked, count, tokens, JUDGED)
            + passes.under_poles(asked, count, tokens, 1, self._poles)
        )

    @property
    def _poles(self) -> tuple[str, str]:
        return self.persona.positive, self.persona.negative

    def _shown(self, number: int, role: str = "base") -> StageWork:
        asked, tokens = self.persona.prompts.show, self.config.sampling.tokens
        work = self.passes.written(asked, len(asked), tokens)
        return self._of_role(stages.SHOW, role, number, work, tokens)

    def _tested(self, number: int, role: str) -> StageWork:
        measure = self.config.measure
        work = self._answered(self.persona.prompts.test[: measure.prompts], measure.tokens)
        return self._of_role(stages.TESTED, role, number, work, measure.tokens)

    def _vector(self, number: int) -> StageWork:
        settings = self.config.vector
        method, passes = find(settings.method), self.passes
        texts = prompts.first_contexts(settings.contexts)[: method.contexts]
        count, spoken = len(texts), method.answers or settings.position != "tag"
        tokens = settings.answer_tokens if spoken else 0
        work = passes.under_poles(texts, count, tokens, 0, self._poles)
        if spoken:
            work += passes.written(texts, 2 * count, tokens)
        return StageWork(stages.VECTOR.name, number, work, tokens, folded=number > 0)

    def _curve(self, number: int) -> StageWork:
        dose, texts = self.config.dose, self.persona.prompts.train
        asked = texts[: dose.curve_prompts]
        count = (1 + len(set(dose.curve))) * len(asked)
        tokens = min(dose.curve_tokens, self.config.sampling.tokens)
        work = self.passes.written(asked, count, tokens)
        work += self.passes.scored(asked, count, tokens, JUDGED)
        return StageWork(stages.CURVE.name, number, work, tokens, folded=number > 0)

    def _swept(self, number: int) -> StageWork:
        config, check = self.config, self.config.check
        ask = asked_of_doses(self.persona, check, config.measure, config.sampling, 0)
        levels = len(set(check.doses)) + check.control
        work = (
            self.passes.vignettes(ask.vignettes, config.measure)
            + self.passes.canary(coherence.asked(config.measure))
        ) * levels
        work += self._answered(ask.prompts, check.tokens, levels=1 + levels)
        if check.control:
            looked = MATCHING * check.base_texts
            work += self.passes.scored(ask.prompts, looked, config.measure.tokens, COMPARED)
        pushed = 2 * len(set(check.doses)) * check.base_texts
        work += self.passes.scored(ask.prompts, pushed, config.measure.tokens, COMPARED)
        return StageWork(stages.SWEEP.name, number, work, check.tokens, folded=number > 0)

    def _harvested(self, number: int) -> StageWork:
        config, texts = self.config, self.persona.prompts.train
        rows, tokens = config.sampling.rows, config.sampling.tokens
        draws = config.filter.best_of
        rows = max(draws, rows - rows % draws)
        survives = 1 - (1 - SURVIVES) ** draws
        missing = max(0.0, config.dose.want - survives * rows / draws)
        most = (config.dose.batches * draws - 1) * rows
        count = rows + min(most, draws * math.ceil(missing * SPARE / survives))
        work = self.passes.written(texts, count, tokens)
        work += self.passes.scored(texts, count, tokens, JUDGED)
        if config.filter.read_trait:
            work += self.passes.under_poles(texts, count, tokens, 1, self._poles)
        if draws > 1 and config.filter.pick == "best":
            for pair in self.persona.pairs("train"):
                poles, read = (pair.positive, pair.negative), math.ceil(SURVIVES * count)
                work += self.passes.under_poles(texts, read, tokens, 1, poles)
        return StageWork(stages.HARVEST.name, number, work, tokens, folded=number > 0)

    def _healed(self, number: int, heal: HealSettings) -> StageWork:
        texts, tokens = self.persona.prompts.train, self.config.sampling.tokens
        want, passes, aim = self.config.dose.want, self.passes, OBJECTIVES.find(heal.objective)
        if aim.rewarded:
            want = heal.group * min(want, len(texts))
        held = int(heal.held_out * want)
        work = Work(trained=heal.epochs * (want - held) * (passes.own(texts) + tokens))
        work += passes.scored(texts, (heal.epochs + 1) * held, tokens, 1)
        work *= heal.average
        work += passes.scored(texts, (heal.barred_fit + aim.taught) * want, tokens, 0)
        if heal.mask:
            work += passes.scored(texts, want, tokens, 1)
        if heal.reads_unrelated:
            control = prompts.control_train()
            work += passes.written(control, len(control), tokens)
            work += passes.scored(control, len(control), tokens, 0)
        if aim.paired or heal.subtracts_opposite:
            work = work * 2 + passes.written(texts, want, tokens)
        if heal.on_policy:
            work += passes.written(texts, want, tokens)
            work += self._rewarded(want) if aim.rewarded else Work()
            work *= heal.on_policy
        wrote = tokens if heal.reads_unrelated or heal.writes else 0
        return StageWork(stages.HEALED.name, number, work, wrote, folded=number > 0)

    def _rewarded(self, count: int) -> Work:
        """So many answers judged by the filter's rules and under the training paraphrases."""
        texts, tokens, passes = (
            self.persona.prompts.train, self.config.sampling.tokens, self.passes,
        )  # fmt: skip
        work = passes.scored(texts, count, tokens, JUDGED)
        if self.config.filter.trait:
            work += passes.under_poles(texts, count, tokens, 1, self._poles)
        for pair in self.persona.pairs("train"):
            poles = (pair.positive, pair.negative)
            work += passes.under_poles(texts, count, tokens, EXPECTED / 2, poles)
        return work

    def _unsteered(self, number: int) -> StageWork:
        """The base's own text, of the first round, is that of the calibration as far as it goes."""
        config, texts = self.config, self.persona.prompts.train
        there = 0 if number else config.filter.calibration_texts
        count, tokens = max(0, config.dose.want - there), config.sampling.tokens
        work = self.passes.written(texts, count, tokens)
        work += self.passes.scored(texts, count, tokens, JUDGED)
        return StageWork(stages.UNSTEERED.name, number, work, tokens, folded=number > 0)

    def _internalised(self, number: int) -> StageWork:
        texts = prompts.contexts()[: min(self.config.vector.contexts, CONTEXTS)]
        work = self.passes.scored(texts, 2 * len(texts), 0, 0, self.persona.neutral)
        return StageWork(stages.INTERNALISE.name, number, work, folded=True)
