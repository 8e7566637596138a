"""An engineered prompt: of several wordings the one that does best on training prompts.

best = argmax over wordings s of the mean over answers y ~ p₀(· | s, x) of trait(y), x training
prompts, the trait under training paraphrases that are not tried themselves: a wording that judges
its own answers would win. What reports the best one reads the held-out half.
"""

from collections.abc import Callable, Sequence

import torch

from steerheal import streams
from steerheal.config import SamplingSettings
from steerheal.measure import free
from steerheal.measure.poles import expected_logodds
from steerheal.models.model import ChatModel
from steerheal.personas import Pair
from steerheal.pipeline.arms.kind import FIRST, Arm, Bench, Kind
from steerheal.pipeline.declared import STATES
from steerheal.pipeline.stage import Stage, record
from steerheal.records import Record
from steerheal.state.values import base, entered
from steerheal.streams import stream

JUDGES, PROMPTS = 2, 8
"""Training paraphrases that judge and are not tried, and training prompts that each wording
answers."""


class Chosen(Record):
    """The wordings that were tried, and which did best."""

    wordings: tuple[str, ...]
    trait: tuple[float, ...]
    """Of each, nats per token."""
    tokens: int
    """Sampled to find out."""

    @property
    def best(self) -> str:
        """The first of those with the most trait."""
        return self.wordings[self.trait.index(max(self.trait))]


def choose(
    chat: ChatModel,
    wordings: Sequence[str],
    asked: Sequence[str],
    pairs: Sequence[Pair],
    sampling: SamplingSettings,
    *,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Chosen:
    """Every wording's trait on the same prompts and seeds.

    Args:
        chat: The model, in no state.
        wordings: System prompts.
        asked: Training prompts that are answered.
        pairs: Poles that the answers are judged by.
        sampling: Of the answers.
        seed: Of the draws.
        progress: Called with the number of answers written.
    """
    poles = [(pair.positive, pair.negative) for pair in pairs]
    with entered(chat, [base().prompted(text) for text in wordings]) as reader:
        said = free.sweep(reader, asked, sampling, seed=seed, progress=progress)
    trait = [float(torch.nanmean(expected_logodds(chat, answers, poles))) for answers in said]
    tokens = sum(len(item.tokens) for answers in said for item in answers.completions)
    return Chosen(wordings=tuple(wordings), trait=tuple(trait), tokens=tokens)


CHOOSE = Stage(
    "engineered", choose, record("engineered.json", Chosen),
    by=("pipeline.arms.engineered", *STATES),
)  # fmt: skip


def make(of: Bench) -> Arm:
    """The base under the best of the pole and its training paraphrases, those that judge apart."""
    stages, persona = of.stages, of.stages.persona
    pairs, config = persona.pairs("train"), of.stages.config
    wordings = [persona.positive, *(pair.positive for pair in pairs[:-JUDGES])]
    asked = persona.prompts.train[:PROMPTS]
    made = CHOOSE.of(
        stages.chat, wordings, asked, pairs[-JUDGES:], config.sampling,
        seed=stream(config.seed, streams.WORDING),
    )  # fmt: skip
    total = len(wordings) * len(asked)
    found = stages.barred(made, FIRST, "choosing a prompt", total)
    return Arm(lambda _: base().prompted(found.best, of.arm.name), found.tokens)


KIND = Kind(make, family="prompt")
