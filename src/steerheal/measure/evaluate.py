"""One evaluation of one state: vignettes, canary, free answers, judged by the unsteered base."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from steerheal.config import MeasureSettings, SamplingSettings
from steerheal.measure import coherence, damage, free, instruments, vignettes
from steerheal.models.hooks import Dosed, at
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states
from steerheal.prompts import lines
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
    previous: Enter | Literal["base"] | None = None,
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
        previous: Opens the student before this round, or says that it is the base.
        progress: Called with the number of rows done.
    """
    chosen = vignettes.chosen(settings)
    asked = persona.prompts.evaluate[: settings.prompts]
    seeded: dict[str, Any] = {"seed": seed, "dose": dose, "progress": progress}
    with enter() as dosed:
        read = instruments.read(chat, chosen, settings, dosed=dosed, dose=dose, progress=progress)
        (canary,) = coherence.sweep(chat, None, (dose,), dosed, progress)
        with at(dosed, dose):
            plain = damage.plain_perplexity(chat)
        freely = {**seeded, "dosed": dosed}
        answers = free.answers(chat, asked, _long(sampling, settings.tokens), **freely)
        replies = free.answers(chat, _json(settings), _long(sampling, damage.JSON_TOKENS), **freely)
        essays = free.answers(
            chat, _open(settings), _long(sampling, settings.long_tokens), **freely
        )
    before: Sequence[Float[Tensor, "_ D"]] | Literal["base"] | None = None
    if isinstance(previous, str):
        before = "base"
    elif previous is not None:
        with previous():
            before = continuation_states(chat, free.answer_pairs(chat, answers.completions))
    return Scores(
        state=state,
        instrument=settings.instrument,
        vignettes=tuple(read.rows),
        canary=tuple(canary),
        persona=tuple(free.judge(chat, answers, persona, before)),
        long=tuple(damage.health_rows(chat, essays.completions)),
        json_replies=tuple(damage.json_rows(replies.completions)),
        plain_perplexity=plain,
        position_bias=read.position_bias,
        think=settings.think if settings.instrument != "likelihood" else 0,
        closed_early=read.closed_early,
    )


def answer_test(
    chat: ChatModel,
    state: str,
    enter: Enter,
    persona: Persona,
    settings: MeasureSettings,
    *,
    sampling: SamplingSettings,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Scores:
    """Free answers to the persona's test prompts, which choose nothing; arguments as `evaluate`."""
    asked = persona.prompts.test[: settings.prompts]
    with enter() as dosed:
        answers = free.answers(
            chat, asked, _long(sampling, settings.tokens), seed=seed, dosed=dosed, progress=progress
        )
    said = tuple(free.judge(chat, answers, persona))
    return Scores(
        state=state, instrument=settings.instrument, vignettes=(), canary=(), persona=said
    )


def _long(sampling: SamplingSettings, tokens: int) -> SamplingSettings:
    return sampling.model_copy(update={"tokens": tokens})


def _json(settings: MeasureSettings) -> tuple[str, ...]:
    return lines("json")[: settings.json_prompts]


def _open(settings: MeasureSettings) -> tuple[str, ...]:
    return lines("open")[: settings.long_prompts]


def size(settings: MeasureSettings, persona: Persona) -> int:
    """Rows that `evaluate` will report as progress."""
    chosen = vignettes.chosen(settings)
    asked = persona.prompts.evaluate[: settings.prompts]
    parts = (chosen, lines("statements"), asked, _json(settings), _open(settings))
    return sum(map(len, parts))
