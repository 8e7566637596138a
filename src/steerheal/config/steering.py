"""How a vector is extracted, and how it is written with: sampling, push and doses."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from steerheal.bounds import (
    Amount,
    Band,
    BelowOne,
    Count,
    CountOrNone,
    Dose,
    Inside,
    PositiveFraction,
    Rows,
    Seed,
    Temperature,
    Tokens,
    TopK,
)
from steerheal.config.base import Doses, Settings
from steerheal.line import As
from steerheal.tables import ENGINES, METHODS, OWN_ENGINE


class VectorSettings(Settings):
    """How the steering vector is extracted."""

    contrast: Literal["negative", "neutral"] = "negative"
    """The pole that the positive one is compared with."""
    wordings: Literal["poles", "paraphrases"] = "poles"
    """What words the poles: their own texts, or the training half of the persona's paraphrases,
    every context under the next of them; the poles, where it has none."""
    contexts: Count = 256
    """Diverse user messages averaged over; more gives a less noisy direction."""
    band: Band = (0.4, 0.6)
    """Blocks that are steered, as fractions of depth; a wide band compounds and collapses."""
    method: Annotated[str, METHODS] = "mean_difference"
    """How the poles' states become a direction."""
    position: Literal["tag", "last", "mean"] = "tag"
    """Where states are read: at the assistant tag, or at the last token or over the mean of a short
    answer by each pole. contrastive_answers always takes the mean, with no system prompt."""
    answer_tokens: Tokens = 24
    """Longest answer that a pole writes to be read, in tokens."""
    energy: PositiveFraction = 0.9
    """s_space: share of what a block can write that the kept directions hold; 1 keeps all."""
    pull: CountOrNone = 8
    """pulled_back: blocks between, at most up to the last one; 0 is mean_difference."""
    seed: Seed = 0
    """random and trait_per_kl: what is drawn."""


class SamplingSettings(Settings):
    """How completions are sampled."""

    tokens: Tokens = 64
    """Longest completion, in tokens."""
    temperature: Temperature = 0.7
    """Softmax temperature; 0 is greedy. At 1 a reader calls two fifths of the embedded model's own
    answers incoherent; at 0.7 the filter's rules pass 93 % of them. The price is variety: answers
    to one prompt are more alike, so that as many texts hold less that is different."""
    top_p: PositiveFraction = 0.95
    """Nucleus: the smallest set of tokens that holds this much probability."""
    top_k: TopK = 0
    """Only the k likeliest tokens; 0 is no limit."""
    engine: Annotated[str, ENGINES, As(also=("--engine",))] = OWN_ENGINE
    """What writes the text. Another engine draws other text from the same seeds."""
    rows: Rows = 48
    """Rows sampled together; halved when memory runs out."""


class PushSettings(Settings):
    """How the dose runs along a completion of the training data; a constant dose is the default."""

    prompt: bool = True
    """Steer the prompt's tokens as well. Without it the dose begins at the token that the first
    one is drawn from, so that the model reads what it is asked unsteered. Holds for the training
    text alone: readings, and what distill and dpo ask of the vector, steer the prompt."""
    decay: Literal["constant", "linear", "exponential"] = "constant"
    """How the dose falls with the token's position."""
    decay_tokens: Tokens = 64
    """linear: the dose is 0 from this token on; exponential: it halves every so many tokens."""
    kl_budget: Amount = 0.0
    """Most nats of KL(steered‖base) at any token: where it would be more, the token is read again
    at a lower dose, 0 at the least. 0 is no budget. The base runs along in the same batch."""
    backtrack: bool = False
    """Take tokens back where the text loops or its KL spikes, and go on at a lower dose."""
    spike: Amount = 0.0
    """Mean nats of KL to the base over eight tokens that count as a spike; 0 looks for loops only,
    and needs no base in the batch."""
    factor: BelowOne = 0.5
    """The dose after a rewind, as a share of the dose before it."""
    rewinds: Count = 4
    """Most rewinds per completion; what breaks after them is left to the filter."""


class DoseSettings(Settings):
    """How hard the text is steered: walk-C lowers the dose until enough completions survive."""

    start: Dose | Literal["auto"] = "auto"
    """Dose tried first in every round; 1 adds the raw difference of the two poles. auto finds it
    anew in every round: the knee, where text of that dose is about to break."""
    coherence: PositiveFraction = 0.95
    """auto: where the knee lies, as a share of the base's own coherent answers. Lower breaks more
    text, for the filter to drop and the heal to give back."""
    curve: Annotated[Doses, Field(min_length=2)] = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
    """auto: doses that coherence is read at, in shared batches; the largest is the most that is
    ever taken."""
    curve_prompts: Annotated[Count, Field(ge=2)] = 24
    """auto: training prompts that every dose of the curve answers."""
    curve_tokens: Tokens = 32
    """auto: longest of those answers, in tokens; never longer than sampling.tokens."""
    sweep: Annotated[Doses, Field(min_length=1)] = (0.5, 0.75, 1.0)
    """Doses in one batch, as multiples of the round's dose."""
    target: PositiveFraction = 0.75
    """Share of completions that must survive the filter before a dose is accepted, of what
    the base's own fresh text survives: at 0.75, three quarters as many."""
    step: Inside = 0.75
    """Factor on the dose at each step down."""
    walks: Count = 6
    """Most doses tried in a round."""
    want: Count = 64
    """Kept completions a round trains on."""
    minimum: Annotated[Count, Field(ge=2)] = 16
    """Fewest kept completions a round may train on; with fewer it ends as starved."""
    batches: Count = 4
    """Most batches drawn at the accepted dose."""

    @model_validator(mode="after")
    def _wants_at_least_the_minimum(self) -> Self:
        if self.want < self.minimum:
            raise ValueError(f"want ({self.want}) must be at least minimum ({self.minimum})")
        return self
