"""Which of several kept answers to a prompt is trained on.

    q(y) ∝ p(y) · 1[trait(y) is the largest of n]

p is what the teacher writes and the filter keeps, and trait(y) the mean over the training half of
the paraphrases of [ln p₀(y | s⁺, x) − ln p₀(y | s⁻, x)] per token. The other half is left to what
reports. The control takes one of the n at random.
"""

import math
import random
from collections.abc import Callable, Sequence

from steerheal.config import FilterSettings
from steerheal.measure import free
from steerheal.models.model import ChatModel
from steerheal.personas import Persona
from steerheal.records import Completion, Judged

Values = Callable[[Sequence[Completion]], list[float]]
"""Completions to what the largest of is taken."""


def chosen(rows: Sequence[Judged], size: int, values: Values) -> list[Judged]:
    """The rows, in which of every `size` in a row all kept ones but one are passed over.

    Args:
        rows: The draws of a prompt one after another.
        size: How many draws a prompt has.
        values: Asked once, for those that there is a choice of; the first of equals is taken.
    """
    found = list(rows)
    groups = [
        [i for i in range(start, min(start + size, len(rows))) if rows[i].verdict.kept]
        for start in range(0, len(rows), size)
    ]
    choices = [group for group in groups if len(group) > 1]
    places = [i for group in choices for i in group]
    read = values([rows[i].completion for i in places]) if places else []
    value = dict(zip(places, read, strict=True))
    for group in choices:
        best = max(group, key=lambda i: (not math.isnan(value[i]), value[i]))
        for i in group:
            found[i] = rows[i].model_copy(update={"passed_over": i != best})
    return found


def values(settings: FilterSettings, chat: ChatModel, persona: Persona, seed: int) -> Values:
    """What the settings choose by.

    Args:
        settings: Whether the trait or chance chooses.
        chat: The base, in no state.
        persona: Whose paraphrases are read.
        seed: Of the chance.
    """
    if settings.pick == "random":
        source = random.Random(seed)
        return lambda completions: [source.random() for _ in completions]
    return lambda completions: trait(chat, completions, persona)


def trait(chat: ChatModel, completions: Sequence[Completion], persona: Persona) -> list[float]:
    """Log-odds of every completion under the training half, nats per token."""
    totals = [0.0] * len(completions)
    pairs = persona.pairs("train")
    for pair in pairs:
        up, down = free.pole_logprobs(chat, completions, pair)
        for i, said in enumerate(completions):
            totals[i] += free.logodds(up[i], down[i], said.tokens) / len(pairs)
    return totals
