"""What is kept of the written text, and how the adapter is trained on it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from steerheal.bounds import (
    Amount,
    Band,
    BelowOne,
    Count,
    CountOrNone,
    Fraction,
    Inside,
    Label,
    PositiveAmount,
    Power,
    Rank,
    Rows,
)
from steerheal.config.base import MOST_LISTED, Settings
from steerheal.tables import AGGREGATES, BARRIERS, GROUP, NO_BARRIER, OBJECTIVES, Table


class FilterSettings(Settings):
    """Which completions are kept: rejection sampling by rules."""

    tail_perplexity: PositiveAmount = 4.0
    """Highest perplexity of a completion's last quarter under the base, in multiples of the base's
    median on its own text: collapse comes late."""
    word_repetition: Fraction = 0.35
    """Highest share of word trigrams that repeat an earlier one."""
    char_repetition: Fraction = 0.5
    """Highest share of character 8-grams that repeat an earlier one."""
    words: Count = 8
    """Fewest words."""
    false_drop: BelowOne = 0.05
    """Share of the base's own text that the combined rule for incoherence may drop: its limit is
    set there. 0 switches the rule off."""
    rule_drop: BelowOne = 0.01
    """The same for every single calibrated rule (a stretch the base cannot follow, compression,
    distinct bigrams, foreign characters); 0 switches them off."""
    kl_spike: PositiveAmount = 8.0
    """Most nats of KL(steered‖base), mean over any eight tokens in a row."""
    similarity: PositiveAmount = 0.5
    """Highest share of a pole's own words in first-person sentences; above it the text narrates."""
    trait: BelowOne = 0.0
    """Share of the base's own text whose persona log-odds a completion must exceed, so that
    base-like text is left out; 0 switches the rule off."""
    read_trait: bool = True
    """Read every completion's persona log-odds, which is two thirds of the filter's time. Without
    it what check 2 says of the kept text's trait is unknown."""
    thoughts: bool = False
    """Keep completions that hold a thought, and train on it like on the rest."""
    calibration_texts: Annotated[Count, Field(ge=8)] = 64
    """Completions of the base that the limits are set on."""
    best_of: Annotated[Count, Field(le=64)] = 1
    """Draws per prompt and dose, of whose kept ones a single one is trained on; 1 takes all that
    is kept. Sampling takes so many times as long."""
    pick: Literal["best", "random"] = "best"
    """Which one: that of the highest trait under the training half of the paraphrases, or any of
    them, the control."""

    @property
    def rules(self) -> Self:
        """The rules alone, without what is chosen of the text that passes them."""
        return self.model_copy(update={"best_of": 1, "pick": "best"})

    @model_validator(mode="after")
    def _rules_on_what_is_read(self) -> Self:
        if self.trait and not self.read_trait:
            raise ValueError(f"the trait rule (trait {self.trait:g}) needs read_trait")
        return self


class HealSettings(Settings):
    """How the adapter is trained: L = fit + λ·relu(D − τ) + anchor·KL + spectral·Σ‖ΔW‖."""

    objective: Annotated[str, OBJECTIVES] = "sft"
    """The fit. distill reads a per-token dose trace as its nominal dose."""
    barrier: Annotated[str, BARRIERS] = NO_BARRIER
    """D of a KL penalty with a margin, in nats per position. A barrier on the text that is fitted
    does what a lower gate does (docs/why-gates.md), so that none is the default and the others are
    baselines. aggregate, reference, lam, tau, lam_power, barrier_text and off_label are its own."""
    barrier_text: Literal["fitted", "unrelated"] = "fitted"
    """What D is read on: the text that is fitted, or the reference's own answers to unrelated
    prompts, as many a step as anchor_rows says, where a barrier is no gate."""
    off_label: bool = False
    """Read D over all tokens but the one that stands there, renormalised, so that a barrier does
    not hold back what the fit says of its own token."""
    aggregate: Annotated[str, AGGREGATES] = "rmse"
    """How D is aggregated over the completion positions of a batch."""
    reference: Literal["prev", "base", "last_good"] = "prev"
    """The student before this round (a trust region), the round-0 model (a leash), or the student
    after the newest round whose coherence stayed within 1 % of the last good one's before it."""
    lam: Amount = 0.3
    """λ: weight of the barrier; 0 is no barrier."""
    tau: Amount = 0.1
    """τ in nats: D below it costs nothing. Above the operating divergence it never fires."""
    lam_power: Power = 0.0
    """λ in round r is λ·(1+r)^power; below 0 it loosens as the history grows."""
    spectral: Amount = 0.0
    """Weight of the operator norm of every adapted layer's ΔW, summed over the layers, so that a
    layer pays the same however many others there are; 0 is no penalty. Goes with any barrier."""
    anchor: Amount = 0.0
    """λ of an anchor off the trait: mean KL(reference‖student) on the reference's own answers to
    unrelated prompts is added to the loss; 0 is none. A barrier on the text that is fitted shrinks
    trait and damage alike; this does not. Goes with any barrier."""
    anchor_rows: Rows = 8
    """Unrelated answers per optimiser step; accumulate does not split them."""
    mask: Fraction = 0.0
    """ε of a mask on the fit: target tokens that the base gives less than ε times the probability
    of its likeliest token take no part in it; 0 is none. A barrier still sees them."""
    mask_control: bool = False
    """As many tokens of every completion are masked at random instead, the mask's control."""
    average: Annotated[Count, Field(le=16)] = 1
    """Adapters trained from different seeds, whose mean is the heal: what each has by chance grows
    less. Takes so many times as long, and the rank is so many times as large."""
    on_policy: Annotated[CountOrNone, Field(le=64)] = 0
    """Times that the student writes the text itself, each time after a heal on what it wrote
    before; 0 trains on the teacher's text. Needs an objective that has a teacher, distill or
    reverse, which is on-policy distillation, or one that rewards, group. The rank is so many times
    as large."""
    group: Annotated[Count, Field(le=64)] = 4
    """G of group: answers that the student writes to every prompt, to be held against each other;
    at least 2."""
    group_penalty: Amount = 1.0
    """c of group: nats per token that an answer which the filter would drop loses of its reward;
    0 rewards the trait alone."""
    subtract: Annotated[Amount, Field(le=4)] = 0.0
    """c of the common mode: ΔW = ΔW(steered text) − c·ΔW(unsteered text), so that what fine-tuning
    on the model's own text does by itself is taken away. The second is the unsteered control's."""
    subtract_text: Literal["unsteered", "opposite"] = "unsteered"
    """Text of the adapter that subtract takes away. opposite is what the teacher writes at the
    opposite dose: ΔW = [ΔW(+v text) − c·ΔW(−v text)] / (1 + c), so that what both signs break alike
    is taken away as well and the trait keeps its size."""
    beta: PositiveAmount = 0.1
    """β of dpo: how far an answer's log-ratio may go before its preference is taken as learned."""
    preference_ce: Amount = 1.0
    """c of dpo: weight of the preferred answers' cross-entropy beside the preference."""
    rank: Rank = 16
    """Rank of the adapter."""
    alpha: PositiveAmount = 32.0
    """The adapter's output is scaled by alpha / rank, rslora's by alpha / √rank."""
    adapter: Literal["lora", "rslora", "pissa"] = "lora"
    """Kind: lora; rslora keeps its size as the rank grows; pissa starts from the weights' leading
    singular part and is stored at twice the rank."""
    targets: tuple[Annotated[Label, Field(min_length=1)], ...] = Field(
        default=("all",), min_length=1, max_length=MOST_LISTED
    )
    """Linear layers of the band's blocks that get an adapter: all, attention, mlp (the others of
    a block), or names such as q_proj."""
    band: Band = (0.2, 0.8)
    """Blocks that get an adapter, as fractions of depth."""
    epochs: Annotated[Count, Field(le=1_000)] = 2
    """Passes over the kept completions."""
    rows: Rows = 8
    """Completions per optimiser step."""
    accumulate: Rows = 1
    """Micro-batches a step's rows are split into; more needs less memory and more time, and changes
    nothing else. Each is split further by length where that saves padding."""
    lr: Annotated[PositiveAmount, Field(le=10)] = 5e-4
    """Peak learning rate: linear warm-up, then a cosine to 0."""
    warmup: BelowOne = 0.1
    """Share of the steps that warm up."""
    weight_decay: Annotated[Amount, Field(le=100)] = 0.0
    """Decoupled weight decay on the adapter; goes with any barrier."""
    beta2: Inside = 0.95
    """Adam's second-moment decay; 0.95 warms up within a round."""
    clip: PositiveAmount = 1.0
    """Largest gradient norm; a larger gradient is scaled down to it."""
    held_out: BelowOne = 0.1
    """Share of the kept completions that only measures the held-out CE, whole prompts at a time."""

    def named(self) -> tuple[tuple[Table, str], ...]:
        """What it names of the open sets."""
        return (
            (OBJECTIVES, self.objective),
            (BARRIERS, self.barrier),
            (AGGREGATES, self.aggregate),
        )

    @property
    def writes(self) -> bool:
        """Whether a heal writes text of its own."""
        own = self.on_policy or self.subtracts_opposite
        return bool(own) or OBJECTIVES.find(self.objective).paired

    @property
    def subtracts_opposite(self) -> bool:
        """Whether the adapter of text at the opposite dose is taken away."""
        return bool(self.subtract) and self.subtract_text == "opposite"

    @property
    def of_control(self) -> Self:
        """The control's: nothing is taken away, so that it is the same heal whatever the factor."""
        return self.model_copy(update={"subtract": 0.0, "subtract_text": "unsteered"})

    @property
    def barred(self) -> bool:
        """Whether there is a barrier."""
        return self.barrier != NO_BARRIER

    @property
    def barred_fit(self) -> bool:
        """Whether it is on the text that is fitted."""
        return self.barred and self.barrier_text == "fitted"

    @property
    def barred_aside(self) -> bool:
        """Whether it is on unrelated text."""
        return self.barred and self.barrier_text == "unrelated"

    @property
    def reads_unrelated(self) -> bool:
        """Whether the reference answers unrelated prompts."""
        return bool(self.anchor) or self.barred_aside

    @model_validator(mode="after")
    def _masks_at_random_what_is_masked(self) -> Self:
        if self.mask_control and not self.mask:
            raise ValueError("mask_control masks as many tokens as mask does: give mask above 0")
        return self

    @model_validator(mode="after")
    def _prefers_whole_answers(self) -> Self:
        if not self.mask:
            return self
        aim = OBJECTIVES.find(self.objective)
        if aim.paired or aim.rewarded:
            raise ValueError(
                f"objective {self.objective} weighs whole answers, of which a mask would leave "
                "parts out; set mask to 0, or use sft"
            )
        return self

    @model_validator(mode="after")
    def _is_corrected_on_policy(self) -> Self:
        if not self.on_policy:
            return self
        aim = OBJECTIVES.find(self.objective)
        if not (aim.taught or aim.rewarded):
            raise ValueError(
                f"on_policy trains on the student's own text, of which objective {self.objective} "
                "learns nothing new; use distill, reverse or group"
            )
        return self

    @model_validator(mode="after")
    def _rewards_groups_once(self) -> Self:
        if self.objective != GROUP:
            return self
        given = f"objective {self.objective}"
        if not self.on_policy:
            raise ValueError(f"{given} rewards what the student writes; give on_policy 1 or more")
        if self.group < 2:
            raise ValueError(
                f"{given} holds a prompt's answers against each other, and group is {self.group}; "
                "give group 2 or more"
            )
        if self.epochs > 1:
            raise ValueError(
                f"{given} takes one pass over what the student wrote, and epochs is {self.epochs}; "
                "give epochs 1, and more times to write with on_policy"
            )
        return self

    @model_validator(mode="after")
    def _subtracts_what_there_is(self) -> Self:
        if not self.subtract:
            return self
        aim = OBJECTIVES.find(self.objective)
        if aim.paired or not aim.controlled:
            raise ValueError(
                f"objective {self.objective} has no unsteered control to subtract: it does not "
                "imitate the kept text; set subtract to 0, or use sft"
            )
        return self

    @model_validator(mode="after")
    def _splits_evenly(self) -> Self:
        if self.rows % self.accumulate:
            raise ValueError(f"rows ({self.rows}) must be a multiple of accumulate")
        return self

    @model_validator(mode="after")
    def _starts_from_nothing(self) -> Self:
        # Decay pulls the factors to 0, which for PiSSA is not the base but the base less a part.
        if self.adapter == "pissa" and self.weight_decay:
            raise ValueError(
                "adapter pissa starts from a part of the weights, which weight_decay would shrink; "
                "set weight_decay to 0, or use lora or rslora"
            )
        return self
