"""What readings and writings cost in tokens, for one model, persona and run, before any is done.

Prompts are as long as this model's tokenizer and template make them, less what rows read together
share; answers count as long as they may get.
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Self

from steerheal import prompts
from steerheal.config import MeasureSettings
from steerheal.measure import instruments, likelihood, protocol
from steerheal.measure.coherence import ASK, EXAMPLES, OPENING
from steerheal.measure.vignettes import Vignette
from steerheal.models.batch import shared_prefix
from steerheal.models.chat import prompt_ids, text_ids
from steerheal.models.model import ChatModel
from steerheal.records import FOUNDATIONS

SAMPLE = 12
"""Texts of a kind whose tokens are counted; the others are taken to be as long."""
TOGETHER = 128
"""Rollouts that a forced choice reads together."""


@dataclass(frozen=True)
class Work:
    """Tokens by what is done with them."""

    read: float = 0.0
    scored: float = 0.0
    """Positions whose distribution over the whole vocabulary is made, each time that it is."""
    steps: float = 0.0
    """Forwards that write one token in every row of a batch."""
    sampled: float = 0.0
    trained: float = 0.0
    """In every pass of the training."""

    def __add__(self, other: Self) -> Self:
        """Both."""
        return type(self)(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> Self:
        """So many times this."""
        return type(self)(*(times * one for one in astuple(self)))


@dataclass(frozen=True)
class Passes:
    """Counts passes of one model over texts."""

    chat: ChatModel
    rows: int
    """Rows that are written together."""
    known: dict[tuple[str, str], list[int]] = field(default_factory=dict, repr=False)
    """Prompts that were encoded, by their text and system prompt."""

    def prompt(self, text: str, system: str = "") -> list[int]:
        """A prompt's token ids; every round counts the same prompts."""
        if (text, system) not in self.known:
            self.known[text, system] = prompt_ids(self.chat, text, system=system)
        return self.known[text, system]

    def own(self, texts: Sequence[str], system: str = "") -> float:
        """Mean tokens of a prompt beyond what the prompts begin with in common."""
        ids = [self.prompt(text, system) for text in texts[:SAMPLE]]
        if not ids:
            return 0.0
        return math.fsum(map(len, ids)) / len(ids) - shared_prefix(ids)

    def written(self, texts: Sequence[str], count: int, tokens: int) -> Work:
        """So many answers to prompts like these."""
        steps = math.ceil(count / self.rows) * tokens
        return Work(read=count * self.own(texts), steps=steps, sampled=count * tokens)

    def scored(
        self, texts: Sequence[str], count: int, tokens: int, looks: float, system: str = ""
    ) -> Work:
        """So many answers read after their prompts, each position looked at so many times."""
        read = count * (self.own(texts, system) + tokens)
        return Work(read=read, scored=looks * count * tokens)

    def under_poles(
        self, texts: Sequence[str], count: int, tokens: int, looks: float, poles: Sequence[str]
    ) -> Work:
        """So many answers read under each of two system prompts."""
        both = (self.scored(texts, count, tokens, looks, pole) for pole in poles)
        return sum(both, Work())

    def documents(self) -> Work:
        """The plain prose."""
        tokens = len(text_ids(self.chat, prompts.data().joinpath("plain.txt").read_text("utf-8")))
        return Work(read=tokens, scored=tokens)

    def canary(self, statements: Sequence[str]) -> Work:
        """The canary's statements, each after the same worked examples."""
        slot = len(text_ids(self.chat, OPENING)) + 1
        asked = [ASK.format(statement=text) for text in statements]
        opening = sum(len(text_ids(self.chat, ASK.format(statement=one))) for one, _ in EXAMPLES)
        own = self.own(asked) + slot
        return Work(read=opening + len(asked) * own, scored=len(asked) * slot)

    def vignettes(self, chosen: Sequence[Vignette], settings: MeasureSettings) -> Work:
        """The vignettes, by an instrument that is resolved."""
        if not chosen:
            return Work()
        if instruments.find(settings.instrument).thinks:
            return self._forced_choice(chosen, settings)
        reasons = sum(len(text_ids(self.chat, reason)) for reason in likelihood.REASONS.values())
        texts = [likelihood.QUESTION.format(vignette=one.text) for one in chosen]
        slot = len(text_ids(self.chat, likelihood.PREFILL))
        neutral = sum(len(likelihood.NEUTRAL[name]) for name in {one.condition for one in chosen})
        each = self.own(texts) + slot + reasons
        return Work(read=each, scored=slot + reasons) * (len(chosen) + neutral)

    def _forced_choice(self, chosen: Sequence[Vignette], settings: MeasureSettings) -> Work:
        """Thinking, then the slot; what the orders of a vignette share is read once."""
        wording = protocol.load(Path(settings.protocol) if settings.protocol else None)
        labels = wording.labels
        lists = [labels, labels[::-1]]
        if settings.orders == "cyclic":
            lists = [labels[k:] + labels[:k] for k in range(len(labels))]
        each = 0.0
        for one in chosen[:SAMPLE]:
            turns = [wording.turn(one.text, order) for order in lists]
            stem = shared_prefix([self.prompt(turn) for turn in turns])
            each += stem + len(lists) * self.own(turns)
        each /= min(SAMPLE, len(chosen))
        slot = len(self.prompt(wording.nudge)) + len(text_ids(self.chat, wording.prefill))
        count = len(chosen) * len(lists)
        batches = math.ceil(count / TOGETHER)
        return Work(
            read=len(chosen) * each + count * slot,
            scored=count * len(FOUNDATIONS),
            steps=batches * settings.think,
            sampled=count * settings.think,
        )
