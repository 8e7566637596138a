"""How a heal went, step by step."""

import math
from typing import Literal

from steerheal.records.base import Record


class HealStep(Record):
    """One optimiser step."""

    step: int
    epoch: int
    ce: float
    """Cross-entropy per completion token, times the answer's advantage where answers are rewarded;
    KL(teacher‖student) where a teacher is distilled."""
    divergence: float
    """Aggregated D before the hinge; NaN without a barrier."""
    barrier: float
    """λ·relu(D − τ)."""
    lr: float
    gradient: float
    """Gradient norm before clipping."""
    tokens: int
    """Completion tokens in the step."""
    pressure: float = math.nan
    """‖∇barrier‖ / ‖∇CE‖ in the final hidden states; NaN without a barrier."""
    spectral: float = math.nan
    """Mean operator norm of the adapted layers' ΔW; NaN without its penalty."""
    anchor: float = math.nan
    """Mean KL(reference‖student) on the step's unrelated text, in nats; NaN without an anchor."""


class GroupLog(Record):
    """Answers that a student wrote in groups to be rewarded."""

    prompts: int
    """Groups."""
    answers: int
    """With a token in them."""
    empty: int
    """Without one, which are left out."""
    equal: int
    """Groups without a difference in reward, of which nothing is learned."""
    kept: int
    """Answers that the filter keeps."""
    trait: float
    """Mean expected log-odds of the answers under the training paraphrases, nats per token."""
    tokens: int
    """Sampled."""


class HealLog(Record):
    """How a heal went."""

    steps: tuple[HealStep, ...]
    held_out: tuple[float, ...]
    """What a step's `ce` is, on the held-out completions, before training and after each epoch."""
    trained_on: int
    held_out_completions: int
    held_out_reason: str = ""
    """Why none is held out although some were to be, or why nothing is read of them."""
    lam: float
    """λ of this round."""
    outcome: Literal["trained", "rejected"]
    """Rejected: a step was not finite, and nothing is folded."""
    reason: str = ""
    padding: float = math.nan
    """Share of the positions that training read which were padding."""

    masked: float = 0.0
    """Share of the tokens trained on that took no part in the fit."""
    averaged: int = 1
    """Adapters that the heal is the mean of; what is held out is read of the first."""
    on_policy: int = 0
    """Times that the student wrote the text anew; what is held out is read of the first."""
    subtracted: float = 0.0
    """c: how much of the adapter of unsteered text, or of the opposite dose's, was taken away."""
    groups: tuple[GroupLog, ...] = ()
    """One per time that the student wrote answers to be rewarded."""
    sampled: int = 0
    """Tokens that the heal itself sampled: of the student on policy, of the teacher at the opposite
    dose, of the reference where it is anchored."""

    @property
    def barrier_fired(self) -> float:
        """Share of the steps in which D was above τ; NaN without a barrier."""
        if not self.steps or not self.lam > 0:
            return math.nan
        return sum(step.barrier > 0 for step in self.steps) / len(self.steps)
