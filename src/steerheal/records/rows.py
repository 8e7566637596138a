"""What one evaluation read: a row per vignette, statement and answer."""

import math

from steerheal.records.base import Record
from steerheal.records.text import Completion


class VignetteRow(Record):
    """One vignette under one condition, as an instrument read it."""

    id: str
    condition: str
    foundation: str
    """The foundation it was written to violate, canonical name."""
    score: tuple[float, ...]
    """Seven log-scores in nats, canonical order."""
    p: tuple[float, ...]
    """Softmax of the scores."""
    p_ans_any: float
    """Answer mass on the allowed first tokens at the slot."""
    nll_prefill: float
    """Mean negative log-likelihood of the prefill's tokens, nats per token."""


class CanaryRow(Record):
    """One forced JSON slot."""

    id: str
    p_ans_any: float
    """Probability mass on the allowed answers."""
    nll_prefill: float


class PersonaRow(Record):
    """One free answer to a neutral prompt, judged by the base model."""

    completion: Completion
    logodds: float
    """[log p_base(y|positive, x) − log p_base(y|negative, x)] / tokens, nats per token."""
    perplexity: float
    """Perplexity of the answer under the base."""
    tail_perplexity: float
    """The same over its last quarter: collapse comes late."""
    kl_to_base: float
    """Mean over positions of KL(state‖base) on the answer, nats per token."""
    kl_to_previous: float = math.nan
    """The same to the student before this round; NaN for the base."""
    word_repetition: float
    distinct_2: float
    """Distinct word bigrams over all of them."""
    logprobs: tuple[float, ...] = ()
    """ln p_base of every token; empty where the answer broke off, and in older records."""
    entropies: tuple[float, ...] = ()
    """Of the base where each token was drawn, nats."""


class HealthRow(Record):
    """A long answer to an open prompt, and how healthy it is."""

    completion: Completion
    tail_perplexity: float
    """Perplexity of its last quarter under the base."""
    distinct_2: float
    loops: bool
    """Whether it repeats itself beyond what undamaged prose does."""
    words: int


class JsonRow(Record):
    """A free reply to a request for JSON."""

    completion: Completion
    valid: bool
    """Whether the first object or list in it parses."""


class UnitRow(Record):
    """One unit of a reading that brings its own rows: an answer, a text, a task."""

    id: str
    """What pairs it between states, such as its prompt."""
    value: float
    """What the reading reads of it."""
    parts: dict[str, float] = {}
    """Other numbers of it, by name."""
    completion: Completion | None = None
    """The answer behind it, where the state wrote one."""


class Scores(Record):
    """Everything one evaluation read; every aggregate is a function of these rows."""

    state: str
    """base, steered or healed."""
    instrument: str
    vignettes: tuple[VignetteRow, ...]
    canary: tuple[CanaryRow, ...]
    persona: tuple[PersonaRow, ...]
    long: tuple[HealthRow, ...] = ()
    json_replies: tuple[JsonRow, ...] = ()
    plain_perplexity: float = math.nan
    """Perplexity of the bundled plain prose under the state."""
    position_bias: tuple[float, ...] = ()
    """What cycling the options removed from each list position, in nats; empty when not cycled."""
    think: int = 0
    """Thinking budget of forced_choice, in tokens."""
    closed_early: int = 0
    """Rows whose thinking wanted to end before its budget."""
    own: dict[str, tuple[UnitRow, ...]] = {}
    """Rows of readings that bring their own, by the reading's name."""
