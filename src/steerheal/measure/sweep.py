"""A student under several doses of a vector, each against its dose 0 on the same units.

All doses of a vector go through the same batches: vignettes, canary and free answers. Free answers
start from the same seeds at every dose, and the unsteered base judges all of them at once. What a
dose reads is what an evaluation of that dose alone would read.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from steerheal.config import CheckSettings, MeasureSettings, SamplingSettings
from steerheal.measure import coherence, free, instruments, summary, vignettes
from steerheal.measure.instrument import Read
from steerheal.measure.own import Asker
from steerheal.measure.readings import table
from steerheal.measure.readings.table import Rules
from steerheal.measure.vignettes import Vignette
from steerheal.models.model import ChatModel
from steerheal.personas import Axis, Persona
from steerheal.records import CanaryRow, Completion, DosePoint, Scores, Sweep
from steerheal.state.values import State, entered


@dataclass(frozen=True)
class Asked:
    """What every dose is asked, how it answers, and who judges."""

    persona: Persona
    """Axis, and the poles that the base judges by."""
    vignettes: Sequence[Vignette]
    prompts: Sequence[str]
    measure: MeasureSettings
    """Whose instrument reads the vignettes."""
    sampling: SamplingSettings
    """Of the free answers."""
    seed: int
    rules: Rules | None = None
    """What tells coherent answers."""

    @property
    def rows(self) -> int:
        """Rows that one dose reports as progress."""
        return len(self.vignettes) + len(coherence.asked(self.measure)) + len(self.prompts)


def asked(
    persona: Persona,
    check: CheckSettings,
    measure: MeasureSettings,
    sampling: SamplingSettings,
    seed: int,
    *,
    rules: Rules | None = None,
) -> Asked:
    """The first of the evaluation's own vignettes and prompts, as many as the check asks for."""
    chosen = vignettes.chosen(measure)
    return Asked(
        persona=persona,
        vignettes=_first_of_each(chosen, check.per_foundation),
        prompts=persona.prompts.evaluate[: check.prompts],
        measure=measure,
        sampling=sampling.model_copy(update={"tokens": check.tokens}),
        seed=seed,
        rules=rules,
    )


def read(
    chat: ChatModel,
    state: State,
    doses: Sequence[float],
    ask: Asked,
    progress: Callable[[int], None] = lambda _: None,
    *,
    known: Scores | None = None,
) -> list[Scores]:
    """The rows at every dose, in the order given.

    Args:
        chat: The model, in no state.
        state: What is steered, at any dose.
        doses: Its doses; 0 is the state without its vectors.
        ask: What is asked.
        progress: Called with the number of rows done, over all doses.
        known: An evaluation of the state without the vector, which holds what is asked: dose 0
            takes its vignettes and canary from there. Free answers are written anew, as long as
            those of the other doses.
    """
    fresh = [dose for dose in doses if dose or known is None]
    with entered(chat, [state.at_dose(dose) for dose in fresh]) as reader:
        acts = instruments.sweep(reader, ask.vignettes, ask.measure, progress=progress)
        slots = coherence.sweep(reader, coherence.asked(ask.measure), progress)
    with entered(chat, [state.at_dose(dose) for dose in doses]) as reader:
        answers = free.sweep(reader, ask.prompts, ask.sampling, seed=ask.seed, progress=progress)
    together = free.Answers(
        [item for one in answers for item in one.completions],
        [item for one in answers for item in one.states],
        reader,
    )
    judged = free.judge(chat, together, ask.persona)
    size, new = len(ask.prompts), iter(zip(acts, slots, strict=True))
    found = []
    for k, dose in enumerate(doses):
        rows, canary = _taken(known, ask) if known is not None and not dose else next(new)
        scores = Scores(
            state="steered" if dose else "base",
            instrument=ask.measure.instrument,
            vignettes=tuple(rows.rows),
            canary=tuple(canary),
            persona=tuple(judged[k * size : (k + 1) * size]),
            think=instruments.thought(ask.measure),
            closed_early=rows.closed_early,
        )
        said = free.Answers(answers[k].completions, answers[k].states, reader)
        asker = Asker(
            chat, state.at_dose(dose), ask.persona, scores, ask.sampling, ask.seed,
            ask.measure, said, ask.rules,
        )  # fmt: skip
        own = table.own_rows(asker, swept=True)
        found.append(scores.model_copy(update={"own": own}))
    return found


def _taken(known: Scores, ask: Asked) -> tuple[Read, list[CanaryRow]]:
    """What an evaluation has read of the vignettes and the canary that are asked."""
    by_key = {(row.id, row.condition): row for row in known.vignettes}
    rows = [by_key[vignette.id, vignette.condition] for vignette in ask.vignettes]
    return Read(rows, closed_early=known.closed_early), list(known.canary)


def point(
    scores: Scores, zero: Scores, axis: Axis, *, dose: float, control: bool = False
) -> DosePoint:
    """A dose against dose 0; every change is a mean of paired differences with its interval.

    Args:
        scores: The dose's rows.
        zero: Those of dose 0 on the same vignettes and prompts.
        axis: The persona's.
        dose: What the point is called; a control is called by the dose that it matches.
        control: Whether it is a random vector.
    """
    found = summary.summarise(scores, zero, axis)
    return DosePoint.of(found, dose, control=control)


def sweep(
    chat: ChatModel,
    state: State,
    doses: Sequence[float],
    ask: Asked,
    *,
    control: tuple[float, State] | None = None,
    known: Scores | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Sweep:
    """The doses from the least up, and then the control.

    Args:
        chat: The model, in no state.
        state: The student under the persona's vector, at any dose.
        doses: Above 0, in any order.
        ask: What is asked.
        control: The dose that a random vector at dose 1 equals in KL, and the student under it;
            None leaves it out.
        known: An evaluation of the student, as in `read`.
        progress: Called with the number of rows done, over all doses.
    """
    ordered = sorted(set(doses))
    axis = ask.persona.axis
    zero, *steered = read(chat, state, (0.0, *ordered), ask, progress, known=known)
    points = [
        _kept(point(scores, zero, axis, dose=dose), scores)
        for dose, scores in zip(ordered, steered, strict=True)
    ]
    if control is not None:
        dose, matched = control
        (random,) = read(chat, matched, (1.0,), ask, progress)
        points.append(_kept(point(random, zero, axis, dose=dose, control=True), random))
    return Sweep(
        points=tuple(points),
        base_perplexity=summary.fluency(zero, axis),
        said=_texts(zero),
    )


def _kept(found: DosePoint, scores: Scores) -> DosePoint:
    """A dose with its free answers."""
    return found.model_copy(update={"said": _texts(scores)})


def _texts(scores: Scores) -> tuple[Completion, ...]:
    return tuple(row.completion for row in scores.persona)


def _first_of_each(chosen: Sequence[Vignette], most: int) -> list[Vignette]:
    """The first vignettes of every foundation under every condition; 0 is all of them."""
    taken: dict[tuple[str, str], int] = {}
    kept = []
    for vignette in chosen:
        kind = (vignette.foundation, vignette.condition)
        taken[kind] = taken.get(kind, 0) + 1
        if taken[kind] <= (most or math.inf):
            kept.append(vignette)
    return kept
