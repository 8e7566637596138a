"""One evaluation of one state: vignettes, canary, free answers, judged by the unsteered base."""

from collections.abc import Callable, Sequence
from typing import Literal

from steerheal.config import MeasureSettings, SamplingSettings
from steerheal.measure import coherence, damage, free, instruments, vignettes
from steerheal.measure.own import Asker
from steerheal.measure.readings import table
from steerheal.measure.readings.table import Rules
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states
from steerheal.personas import Persona
from steerheal.prompts import lines
from steerheal.records import Scores
from steerheal.state.values import State, base
from steerheal.streams import EVALUATION, TEST, stream


def evaluate(
    chat: ChatModel,
    role: str,
    state: State,
    persona: Persona,
    settings: MeasureSettings,
    *,
    sampling: SamplingSettings,
    seed: int,
    previous: State | None = None,
    rules: Rules | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Scores:
    """Everything the settings ask to read of a state.

    Args:
        chat: The model, in no state.
        role: base, steered or healed: what the state is to the run.
        state: What is read.
        persona: Axis and evaluation prompts.
        settings: What is read, and how much of it.
        sampling: How free answers are sampled; their length is the evaluation's own.
        seed: The run's: the free answers have a stream of it, the same for every state.
        previous: The student before this round.
        rules: What tells coherent answers; without it that reading is unknown.
        progress: Called with the number of rows done.
    """
    chosen = vignettes.chosen(settings)
    asked = persona.prompts.evaluate[: settings.prompts]
    draws = stream(seed, EVALUATION)

    def written(reader: ChatModel, prompts: Sequence[str], tokens: int) -> free.Answers:
        length = sampling.model_copy(update={"tokens": tokens})
        return free.answers(reader, prompts, length, seed=draws, progress=progress)

    with state.entered(chat) as reader:
        read = instruments.read(reader, chosen, settings, progress=progress)
        (canary,) = coherence.sweep(reader, coherence.asked(settings), progress)
        plain = damage.plain_perplexity(reader)
        answers = written(reader, asked, settings.tokens)
        replies = written(reader, _json(settings), damage.JSON_TOKENS)
        essays = written(reader, _open(settings), settings.long_tokens)
    before = _seen_before(chat, previous, answers)
    found = Scores(
        state=role,
        instrument=settings.instrument,
        vignettes=tuple(read.rows),
        canary=tuple(canary),
        persona=tuple(free.judge(chat, answers, persona, before)),
        long=tuple(damage.health_rows(chat, essays.completions)),
        json_replies=tuple(damage.json_rows(replies.completions)),
        plain_perplexity=plain,
        position_bias=read.position_bias,
        think=instruments.thought(settings),
        closed_early=read.closed_early,
    )
    asker = Asker(
        chat, state, persona, found, sampling, draws, settings, answers, rules, progress
    )  # fmt: skip
    return found.model_copy(update={"own": table.own_rows(asker)})


def _seen_before(
    chat: ChatModel, previous: State | None, answers: free.Answers
) -> free.Seen | Literal["base"] | None:
    """What the student before the round makes of the answers."""
    if previous is None:
        return None
    if previous == base():
        return "base"
    with previous.entered(chat) as reader:
        pairs = free.answer_pairs(reader, answers.completions)
        return free.Seen(continuation_states(reader, pairs), reader)


def answer_test(
    chat: ChatModel,
    role: str,
    state: State,
    persona: Persona,
    settings: MeasureSettings,
    *,
    sampling: SamplingSettings,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Scores:
    """Free answers to the persona's test prompts, which choose nothing; arguments as `evaluate`."""
    asked = persona.prompts.test[: settings.prompts]
    length = sampling.model_copy(update={"tokens": settings.tokens})
    with state.entered(chat) as reader:
        draws = stream(seed, TEST)
        answers = free.answers(reader, asked, length, seed=draws, progress=progress)
    said = tuple(free.judge(chat, answers, persona))
    return Scores(state=role, instrument=settings.instrument, vignettes=(), canary=(), persona=said)


def prompted(
    chat: ChatModel,
    persona: Persona,
    settings: MeasureSettings,
    *,
    sampling: SamplingSettings,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Scores:
    """The base under the persona's system prompt: the rows of the trait alone, as `evaluate`'s."""
    state = base().prompted(persona.positive)
    chosen = trait_vignettes(settings)
    asked = persona.prompts.evaluate[: settings.prompts]
    length = sampling.model_copy(update={"tokens": settings.tokens})
    with state.entered(chat) as reader:
        rows = instruments.read(reader, chosen, settings, progress=progress).rows if chosen else ()
        draws = stream(seed, EVALUATION)
        answers = free.answers(reader, asked, length, seed=draws, progress=progress)
    return Scores(
        state="prompted",
        instrument=settings.instrument,
        vignettes=tuple(rows),
        canary=(),
        persona=tuple(free.judge(chat, answers, persona)),
    )


def prompted_size(settings: MeasureSettings, persona: Persona) -> int:
    """Rows that `prompted` will report as progress."""
    return len(trait_vignettes(settings)) + len(persona.prompts.evaluate[: settings.prompts])


def trait_vignettes(settings: MeasureSettings) -> list[vignettes.Vignette]:
    """The vignettes, where the trait is read on them."""
    read = "vignettes" in table.headed("trait", settings.instrument).fields
    return vignettes.chosen(settings) if read else []


def _json(settings: MeasureSettings) -> tuple[str, ...]:
    return lines("json")[: settings.json_prompts]


def _open(settings: MeasureSettings) -> tuple[str, ...]:
    return lines("open")[: settings.long_prompts]


def size(settings: MeasureSettings, persona: Persona) -> int:
    """Rows that `evaluate` will report as progress."""
    chosen = vignettes.chosen(settings)
    asked = persona.prompts.evaluate[: settings.prompts]
    parts = (chosen, coherence.asked(settings), asked, _json(settings), _open(settings))
    return sum(map(len, parts)) + table.own_size(settings)
