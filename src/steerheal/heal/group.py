"""Group: of a student's answers to one prompt the better ones are to become likelier (GRPO).

For G answers y₁ … y_G that the student p writes to a prompt, each with its trait under the training
half of the paraphrases:
    r_i = trait(y_i) − c·1[the filter drops y_i]
    A_i = (r_i − mean r) / std r,  0 where all r are equal       so that Σ_i A_i = 0
    L   = −Σ_i A_i·ln p(y_i) / (tokens of the step)              + anchor·KL(reference‖student)
A step is a cross-entropy whose weight, A, is the same at all tokens of an answer. A long answer's
tokens count as much as a short one's, and L stands to the anchor as a cross-entropy does. The text
is passed over once and then written anew, so that the ratio to the student that wrote it needs no
clipping: it is 1 at the first step of a pass, and at later ones what those before it moved.

Source: DeepSeekMath, Shao et al. 2024, arXiv:2402.03300, whose KL is on the answers; here it is the
heal's anchor, off the trait.
"""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple, Protocol

from steerheal.config import HealSettings, SamplingSettings
from steerheal.measure.free import Answers
from steerheal.models.generate import Draw, write
from steerheal.models.model import ChatModel
from steerheal.records import Completion, GroupLog
from steerheal.state.values import State

EQUAL = 1e-5
"""Nats below which the rewards of a group differ by rounding alone."""


class Reward(Protocol):
    """What answers are rewarded for."""

    @property
    def key(self) -> str:
        """Digest of all that the reward depends on."""
        ...

    def trait(self, chat: ChatModel, answers: Answers) -> list[float]:
        """Every answer's trait, nats per token; the model is in no state."""
        ...

    def kept(self, chat: ChatModel, answers: Answers) -> list[bool]:
        """Whether the filter keeps each."""
        ...


class Group(NamedTuple):
    """What a student wrote, prompt after prompt, and how far each answer is to be pulled."""

    texts: list[Completion]
    advantages: list[float]
    log: GroupLog


def written(
    chat: ChatModel,
    student: State,
    asked: Sequence[str],
    reward: Reward,
    settings: HealSettings,
    *,
    sampling: SamplingSettings,
    draws_from: int,
) -> Group:
    """A group of answers to every prompt, and the advantage of each; empty ones are left out.

    Args:
        chat: The model, in no state.
        student: Who writes.
        asked: Prompts, each once.
        reward: What the answers are rewarded for.
        settings: Size of a group, and c.
        sampling: How the student writes.
        draws_from: Seed of the first draw; those of the others follow.
    """
    prompts = [prompt for prompt in asked for _ in range(settings.group)]
    draws = [Draw(prompt, seed=draws_from + i) for i, prompt in enumerate(prompts)]
    with student.entered(chat) as reader:
        said, states = write(reader, draws, sampling, keep_states=True)
    there = [i for i, item in enumerate(said) if item.tokens]
    answers = Answers([said[i] for i in there], [states[i] for i in there], reader)
    trait, kept = reward.trait(chat, answers), reward.kept(chat, answers)
    lost = [0.0 if good else settings.group_penalty for good in kept]
    rewards = [nats - less for nats, less in zip(trait, lost, strict=True)]
    found, equal = advantages(rewards, [prompts[i] for i in there])
    log = GroupLog(
        prompts=len(asked),
        answers=len(there),
        empty=len(said) - len(there),
        equal=equal,
        kept=sum(kept),
        trait=fmean(trait) if trait else math.nan,
        tokens=sum(len(item.tokens) for item in answers.completions),
    )
    return Group(answers.completions, found, log)


def advantages(rewards: Sequence[float], prompts: Sequence[str]) -> tuple[list[float], int]:
    """Every reward in standard deviations from its group's mean, and how many groups have none.

    Args:
        rewards: In nats per token.
        prompts: What each answers; answers to one prompt are a group.
    """
    found, equal = [0.0] * len(rewards), 0
    for prompt in dict.fromkeys(prompts):
        places = [i for i, asked in enumerate(prompts) if asked == prompt]
        mine = [rewards[i] for i in places]
        mean = fmean(mine)
        spread = math.sqrt(fmean([(reward - mean) ** 2 for reward in mine]))
        if not spread > EQUAL:  # NaN as well
            equal += 1
            continue
        for i in places:
            found[i] = (rewards[i] - mean) / spread
    return found, equal
