"""One evaluation of one state: vignettes, canary, free answers, judged by the unsteered base."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from steerheal.config import MeasureSettings, SamplingSettings
from steerheal.measure import coherence, free, likelihood, vignettes
from steerheal.models.hooks import Dosed
from steerheal.models.load import ChatModel
from steerheal.models.score import continuation_states
from steerheal.records import Scores
from steerheal.steer.persona import Persona

Enter = Callable[[], AbstractContextManager[Dosed | None]]
"""Opens a state: the model inside is the state, outside it is the unsteered base again."""


def evaluate(
    chat: ChatModel,
    state: str,
    enter: Enter,
    persona: Persona,
    settings: MeasureSettings,
    *,
    sampling: SamplingSettings,
    seed: int,
    dose: float = 0.0,
    previous: Enter | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Scores:
    """Everything the settings ask to read of a state.

    Args:
        chat: The unsteered, unfolded model.
        state: base, steered or healed.
        enter: Opens the state.
        persona: Axis and evaluation prompts.
        settings: What is read, and how much of it.
        sampling: How free answers are sampled; their length is the evaluation's own.
        seed: Of the free answers; the same for every state.
        dose: Dose of the state, when it is steered.
        previous: Opens the student before this round.
        progress: Called with the number of rows done.
    """
    chosen = vignettes.stratified(vignettes.load(settings.vignettes), settings.per_foundation)
    prompts = persona.prompts.evaluate[: settings.prompts]
    lengths = sampling.model_copy(update={"tokens": settings.tokens})
    with enter() as dosed:
        rows = likelihood.read(chat, chosen, progress)
        canary = coherence.read(chat, progress=progress)
        answers = free.answer(
            chat, prompts, lengths, seed=seed, dose=dose, dosed=dosed, progress=progress
        )
    before = None
    if previous is not None:
        with previous():
            before = continuation_states(chat, free.answer_pairs(chat, answers.completions))
    return Scores(
        state=state,
        instrument=likelihood.NAME,
        vignettes=tuple(rows),
        canary=tuple(canary),
        persona=tuple(free.judge(chat, answers, persona, before)),
    )


def size(settings: MeasureSettings, persona: Persona, statements: Sequence[str]) -> int:
    """Rows that `evaluate` will report as progress."""
    chosen = vignettes.stratified(vignettes.load(settings.vignettes), settings.per_foundation)
    return len(chosen) + len(statements) + min(settings.prompts, len(persona.prompts.evaluate))
