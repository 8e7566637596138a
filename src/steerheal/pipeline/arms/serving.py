"""How much of what an arm changes serves the trait: the Fisher cosine of its curve's end.

Read on what the base answered at the seed, so that every arm is held to the same text and nothing
is sampled for it.
"""

from collections.abc import Sequence
from functools import cached_property

import torch

from steerheal.measure.fisher import Ground, fisher, ground
from steerheal.models.model import ChatModel
from steerheal.personas import HALVES, Persona
from steerheal.pipeline.arms.kind import FIRST
from steerheal.pipeline.declared import STATES
from steerheal.pipeline.stage import Stage, record
from steerheal.pipeline.stages import Stages
from steerheal.records import Completion, Fisher, Scores
from steerheal.state.values import State, base


class Common:
    """What all arms of a seed are read against, computed once where any of them needs it."""

    def __init__(
        self, chat: ChatModel, persona: Persona, texts: Sequence[Completion], wordings: int
    ) -> None:
        self._of = (chat, persona, texts, wordings)

    @property
    def ground(self) -> Ground:
        """The base's text under every pole, on the model's device."""
        return self._kept.to(self._of[0].device)

    @cached_property
    def _kept(self) -> Ground:
        """In main memory, so that arms that are made meanwhile have the device to themselves."""
        return ground(*self._of).to(torch.device("cpu"))


def served(
    chat: ChatModel,
    state: State,
    persona: Persona,
    texts: Sequence[Completion],
    *,
    wordings: int,
    common: Common | None = None,
) -> Fisher:
    """A state's cosine with the trait, on text that the base wrote.

    Args:
        chat: The model, in no state.
        state: What is read.
        persona: Whose trait.
        texts: What the base wrote.
        wordings: How many paraphrases of each half are the reward.
        common: The same text's ground, where it is there.
    """
    known = common or Common(chat, persona, texts, wordings)
    (found,) = fisher(chat, known.ground, [state])
    return found


SERVED = Stage(
    "fisher", served, record("fisher.json", Fisher),
    by=("pipeline.arms.serving", "measure.fisher", *STATES),
    counts={"persona": lambda persona: [persona.pairs(half) for half in HALVES]},
)  # fmt: skip


class Serving:
    """Every arm's end at one seed, read against what the base answered there, which comes first."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._common: Common | None = None
        self._texts: list[Completion] = []

    def of(self, own: Stages, state: State, scores: Scores) -> Fisher | None:
        """The end of an arm's curve; None where the base said nothing to read it on.

        Args:
            own: The run's own stages at the seed, in the arm's folder.
            state: The arm's last point.
            scores: Its readings.
        """
        wordings = max(1, own.config.measure.held_out_pairs)
        if state == base():
            said = [row.completion for row in scores.persona]
            self._texts = [text for text in said if text.tokens]
            self._common = Common(own.chat, own.persona, self._texts, wordings)
        if not self._texts:
            return None
        made = SERVED.of(own.chat, state, own.persona, self._texts, wordings=wordings)
        return own.made(made, FIRST, common=self._common)
