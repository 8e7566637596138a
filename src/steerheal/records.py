"""What travels between stages: frozen, versioned records. No torch, no disk.

Units: log-probabilities and divergences are in nats; readings that nobody could take are NaN and
carry the reason.
"""

import math
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, field_validator

VERSION = 2
FOUNDATIONS = ("care", "fairness", "loyalty", "authority", "sanctity", "liberty", "social")
"""Canonical order of every seven-vector; `social` is odd but not morally wrong."""
BREAKDOWN = 1.7
"""Nats per token of cumulative KL to base at which additive steering without healing is published
to break down, whatever its schedule."""
UNREAD_SETTINGS = (("measure", "resamples"),)
"""Settings of older records, by group and name."""


class Record(BaseModel):
    """Frozen and closed; NaN survives JSON as the string "NaN"."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, ser_json_inf_nan="strings", use_attribute_docstrings=True
    )


class Reading(Record):
    """A number with its 95 % interval."""

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    """Independent units (prompts, vignettes) behind it."""
    reason: str = ""
    """Why the value, or its interval, is NaN."""

    @property
    def moved(self) -> bool:
        """Whether the interval excludes 0; an unknown reading has not moved."""
        return self.low > 0 or self.high < 0

    @classmethod
    def unknown(cls, reason: str) -> Self:
        """A reading nobody could take."""
        return cls(value=math.nan, reason=reason)


Thought = Literal["", "open", "closed"]
"""What a text holds: no thought, one with no answer after it, or one with an answer after it."""


class Completion(Record):
    """What the model wrote to one prompt."""

    prompt: str
    text: str
    tokens: tuple[int, ...]
    """Token ids, the end-of-turn token included when the model wrote it."""
    dose: float
    """Coefficient on the vector while it was written; 0 is unsteered."""
    seed: int
    ended: bool
    """True: the model ended its turn; False: cut at the token limit."""
    rewinds: int = 0
    """How often backtracking took tokens back; those are not in `tokens`."""
    doses: tuple[float, ...] = ()
    """Dose of every token, where it was not the same for all."""
    broken: bool = False
    """True: the logits after its last token were not finite, so that nothing could follow."""
    thought: Thought = ""
    """Whether it holds a thought that the model wrote before its answer, or instead of one."""


class Calibration(Record):
    """The filter's limits, set on the base's own unsteered text."""

    texts: int
    """Base completions behind it."""
    classes: dict[str, float]
    """Share of each class of characters in them."""
    medians: dict[str, float]
    """Median of every sign in them."""
    spreads: dict[str, float]
    """Standard deviation of every sign in them."""
    limits: dict[str, float]
    """Limit per calibrated rule; infinite where the rule is off."""
    dropped: dict[str, float]
    """Share of these same texts that each rule drops, and all of them together: fresh text, which
    the limits do not know, loses more."""
    fresh: dict[str, float] = {}
    """What fresh text of the base loses: every text judged by limits that were set without it."""
    expected: dict[str, float] = {}
    """What each calibrated rule is expected to drop of fresh text."""
    too_few: dict[str, float] = {}
    """The rules of them for which the texts are too few: they drop more than they were set to."""


class Verdict(Record):
    """Whether a completion is kept, why not, and every number the rules looked at."""

    kept: bool
    reasons: tuple[str, ...]
    tail_perplexity: float
    word_repetition: float
    char_repetition: float
    words: int
    compression: float = math.nan
    """Compressed over plain bytes: loops compress well."""
    distinct_2: float = math.nan
    """Distinct word bigrams over all of them."""
    drift: float = math.nan
    """Share of characters in classes that the base hardly writes in."""
    kl: float = math.nan
    """Mean over tokens of KL(steered‖base), nats per token: how far from base-like it is."""
    kl_spike: float = math.nan
    """Largest mean of that KL over a few tokens in a row."""
    similarity: float = math.nan
    """Overlap with the persona's own text."""
    logodds: float = math.nan
    """The completion's own persona log-odds under the base, nats per token."""
    score: float = math.nan
    """The combined sign of incoherence: weighted spreads from the base's own text."""


class Judged(Record):
    """A completion and its verdict."""

    completion: Completion
    verdict: Verdict
    batch: str
    """Where it was drawn: `walk-0`, `walk-1`, …, `top-up-1`, …"""


class WalkStep(Record):
    """One multiplier that walk-C tried."""

    multiplier: float
    drawn: int
    kept: int

    @property
    def survival(self) -> float:
        """Share of the drawn completions that the filter kept."""
        return self.kept / self.drawn


class Harvest(Record):
    """A round's training data: what was drawn at which doses, and what survived."""

    outcome: Literal["fed", "starved"]
    multiplier: float
    """The accepted multiplier, or the lowest one tried when nothing was accepted."""
    walk: tuple[WalkStep, ...]
    judged: tuple[Judged, ...]
    """Everything drawn; only kept completions of the accepted multiplier are trained on."""
    perplexity_limit: float
    """Highest tail perplexity the filter let through."""
    calibration: Calibration | None = None
    """The filter's limits, and how much of the base's own text they drop."""

    def kept(self, want: int | None = None) -> list[Completion]:
        """The kept completions drawn at the accepted multiplier, at most `want` of them."""
        accepted = f"walk-{len(self.walk) - 1}"
        good = [
            row.completion
            for row in self.judged
            if row.verdict.kept and (row.batch == accepted or row.batch.startswith("top-up"))
        ]
        return good[:want]

    def reasons(self) -> dict[str, int]:
        """How often each reason dropped a completion."""
        counts: dict[str, int] = {}
        for row in self.judged:
            for reason in row.verdict.reasons:
                counts[reason] = counts.get(reason, 0) + 1
        return counts


class HealStep(Record):
    """One optimiser step."""

    step: int
    epoch: int
    ce: float
    """Cross-entropy per completion token; KL(teacher‖student) where a teacher is distilled."""
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


class HealLog(Record):
    """How a heal went."""

    steps: tuple[HealStep, ...]
    held_out: tuple[float, ...]
    """What a step's `ce` is, on the held-out completions, before training and after each epoch."""
    trained_on: int
    held_out_completions: int
    held_out_reason: str = ""
    """Why none is held out although some were to be."""
    lam: float
    """λ of this round."""
    outcome: Literal["trained", "rejected"]
    """Rejected: a step was not finite, and nothing is folded."""
    reason: str = ""
    padding: float = math.nan
    """Share of the positions that training read which were padding."""

    @property
    def barrier_fired(self) -> float:
        """Share of the steps in which D was above τ; NaN without a barrier."""
        if not self.steps or not self.lam > 0:
            return math.nan
        return sum(step.barrier > 0 for step in self.steps) / len(self.steps)


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


class Summary(Record):
    """One evaluated state against the base, on the same vignettes and prompts."""

    state: str
    nats: dict[str, float]
    """ln of the mean probability on each foundation."""
    delta_nats: dict[str, Reading]
    """Change of `nats` from the base."""
    top1: float
    """Share of vignettes whose foundation is ranked first, after centring on the base's means."""
    persona_logodds: Reading
    delta_logodds: Reading
    p_ans_any: Reading
    delta_p_ans_any: Reading
    coherence: float
    """Answer mass over the base's."""
    ppx_json: float
    """Perplexity of the forced JSON prefill."""
    perplexity: float
    """Median perplexity of the free answers under the base."""
    distinct_2: float
    repetition: float
    kl_to_base: Reading
    """KL(state‖base) per token on the state's own free answers."""
    coh_cost: Reading
    """|Δ answer mass| per nat of |Δ persona_logodds|."""
    json_is_valid: Reading = Reading.unknown("not read")
    """Share of free replies to a request for JSON that parse."""
    not_wrong: float = math.nan
    """Mean probability on "odd but not wrong": generic damage raises it."""
    plain_perplexity: float = math.nan
    """Perplexity of the bundled plain prose under the state."""
    long_perplexity: float = math.nan
    """Median tail perplexity of long answers under the base."""
    long_distinct_2: float = math.nan
    loop_share: float = math.nan
    """Share of long answers that loop."""
    long_words: float = math.nan
    """Mean length of long answers, in words."""
    surgical: bool | None
    """The target foundation moved as intended and more than every off-target; None: not moved."""


class Evaluation(Record):
    """One evaluated target as a file: aggregates, and the rows that they are functions of."""

    version: int = VERSION
    target: str
    model: str
    dtype: str
    persona: dict[str, Any]
    instrument: str
    think: int
    aggregates: Summary
    guards: dict[str, float] = {}
    """Metrics of outside damage guards, by guard and name."""
    rows: tuple[VignetteRow, ...]
    others: Scores
    """The rest of what was read; its vignettes are in `rows`."""
    how: str = ""
    """How it was read: as a run was, and what was read otherwise."""
    settings: dict[str, Any] = {}
    """The evaluation's settings, and its seed."""

    @property
    def scores(self) -> Scores:
        """Everything that was read, as one record."""
        return self.others.model_copy(update={"vignettes": self.rows})


class Comparison(Record):
    """State b minus state a on the same units; every reading has its paired interval."""

    a: str
    b: str
    instrument: str
    n: int
    """Vignettes that both states answered, counted per condition."""
    delta_nats: dict[str, Reading]
    """Change of ln mean p per foundation."""
    delta_clr: dict[str, Reading]
    """Change of the mean centred log-ratio per foundation, nats: a second look at the same move
    that no single vignette dominates."""
    delta_top1: Reading
    """Change of the share of vignettes ranked right."""
    delta_social: Reading
    """Change of the mean probability of "not wrong", which most damage raises."""
    delta_logodds: Reading
    """Change of persona_logodds, nats per token."""
    delta_p_ans_any: Reading
    """Change of the canary's answer mass."""
    delta_perplexity: Reading
    """Change of the mean ln perplexity of the free answers under the base, nats per token."""
    gated_selectivity: Reading
    """Move on the axis less a share of that off it, times squared coherence; nats."""
    si_flips: Reading
    """Net share of vignettes whose first-ranked foundation flips as intended."""
    coh_cost: Reading
    """|Δ answer mass| per nat of |Δ persona_logodds|."""
    surgical: bool | None
    """The target moved as intended and more than every off-target; None: not moved."""
    moved: tuple[str, ...] = ()
    """Readings whose interval excludes 0, by the names that `readings` gives them."""

    def readings(self) -> dict[str, Reading]:
        """Every reading by name; a foundation's are named like `delta_nats.care`."""
        found: dict[str, Reading] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, Reading):
                found[name] = value
            elif isinstance(value, dict):
                found.update({f"{name}.{key}": reading for key, reading in value.items()})
        return found


class DosePoint(Record):
    """One dose of a sweep, read against the base on the same vignettes and prompts."""

    dose: float
    control: bool = False
    """True: a random vector at equal KL instead of the persona's."""
    delta_nats: dict[str, Reading]
    """Change of ln mean p per foundation."""
    delta_logodds: Reading
    """Change of persona_logodds, nats per token."""
    coherence: float
    """Answer mass over the base's."""
    perplexity: float
    """Median perplexity of the free answers under the base."""
    kl: float
    """Mean KL(steered‖base) per token on the state's own free answers, nats."""
    n: int
    """Vignettes behind the foundations."""

    @classmethod
    def of(cls, read: Summary, dose: float, *, control: bool = False) -> Self:
        """A dose's summary as a point."""
        return cls(
            dose=dose,
            control=control,
            delta_nats=read.delta_nats,
            delta_logodds=read.delta_logodds,
            coherence=read.coherence,
            perplexity=read.perplexity,
            kl=read.kl_to_base.value,
            n=max((reading.n for reading in read.delta_nats.values()), default=0),
        )


class Sweep(Record):
    """A student under several doses of its vector, and under a random one."""

    points: tuple[DosePoint, ...]
    base_perplexity: float
    """Median perplexity of the base's own free answers."""


class Finding(Record):
    """Which outcome a check saw, the numbers behind it, and what to try."""

    check: Literal["check 1", "check 2", "check 3", "loop"]
    outcome: str
    """The rule's name; `ambiguous` when none or several hold."""
    words: str
    """The outcome in one sentence, with its numbers."""
    advice: str
    numbers: dict[str, float] = {}
    candidates: tuple[str, ...] = ()
    """The rules that hold, when there are several."""
    tone: Literal["good", "bad", "unknown"] = "unknown"
    """Good: what one hopes for, with nothing against it; unknown: ambiguous, or with a caveat."""


class Shown(Record):
    """The fixed show prompts, answered by the state."""

    state: str
    completions: tuple[Completion, ...]


class Internalisation(Record):
    """The student's shift over a round, without any hook, against the round's vector."""

    contexts: int
    """User messages averaged over, under the neutral prompt."""
    cosine: dict[int, float]
    """cos(shift, vector) per steered block; NaN where one of them is 0."""
    share: dict[int, float]
    """The shift along the vector in lengths of the vector; 1 is what dose 1 adds at that block, to
    which the pushes of earlier blocks come."""

    @property
    def mean_cosine(self) -> float:
        """Over the blocks."""
        return math.fsum(self.cosine.values()) / len(self.cosine) if self.cosine else math.nan

    @property
    def mean_share(self) -> float:
        """Over the blocks."""
        return math.fsum(self.share.values()) / len(self.share) if self.share else math.nan


class RoundRecord(Record):
    """One round of the loop."""

    round: int
    multiplier: float
    walk: tuple[WalkStep, ...]
    kept: int
    drawn: int
    reasons: dict[str, int]
    outcome: Literal["folded", "starved", "rejected", "stopped"]
    """Stopped: the user asked to end after a check."""
    vector_norms: dict[int, float]
    """Norm of the vector per steered block."""
    direction_cosine: float
    """cos(v_r, v₀), mean over blocks."""
    steered: Summary | None = None
    healed: Summary | None = None
    retain: Reading | None = None
    """Healed over steered change of persona_logodds, both from this round's student."""
    recovered: Reading | None = None
    """Answer mass bought back: (healed − steered) / (base − steered)."""
    heal: HealLog | None = None
    comparisons: tuple[Comparison, ...] = ()
    """Steered and healed against the base, and healed against steered, paired."""
    sweep: Sweep | None = None
    """Doses read before the harvest, for check 1."""
    findings: tuple[Finding, ...] = ()
    """What the checks saw."""
    gate: float = 1.0
    internalised: Internalisation | None = None
    """What the healed student does of the vector by itself."""
    kl_round: float = math.nan
    """KL(student‖student before this round) per token, on the healed student's own answers."""
    kl_cumulative: float = math.nan
    """Sum of `kl_round` over the rounds so far."""

    @property
    def kl_spent(self) -> float:
        """The KL budget used: the rounds' sum or the healed student's own KL to the base.

        The larger of the two: divergences do not add up, and a student can be farther from the base
        than its steps are from each other. NaN where neither is known.
        """
        direct = self.healed.kl_to_base.value if self.healed else math.nan
        return max(
            (value for value in (self.kl_cumulative, direct) if not math.isnan(value)),
            default=math.nan,
        )


class StageMark(Record):
    """A finished stage: its name, round, key, and how long it took when it was first made."""

    name: str
    round: int
    key: str
    seconds: float
    reused: bool = False
    made_again: str = ""
    """Why it was made although one of the same inputs was on disk."""


class OnTest(Record):
    """A round against the base on the test prompts, which were read once and chose nothing."""

    round: int
    prompts: int
    delta_logodds: Reading
    """Change of persona_logodds, nats per token."""
    delta_perplexity: Reading
    """Change of the mean ln perplexity of the free answers under the base, nats per token."""
    kl_to_base: Reading
    """KL(state‖base) per token on the state's own answers."""


class RunRecord(Record):
    """The whole run, readable at any moment."""

    version: int = VERSION
    status: Literal["running", "finished", "interrupted", "failed"]
    outcome: str = ""
    """Why the loop ended."""
    name: str
    config: dict[str, Any]
    command: str
    environment: dict[str, str]
    notes: tuple[str, ...] = ()
    """What the reader must know, such as a template without a system role."""
    persona: dict[str, Any]
    base: Summary | None = None
    rounds: tuple[RoundRecord, ...] = ()
    best: int | None = None
    """The round to use; None when no round was folded."""
    best_reason: str = ""
    """Why that round, or why none."""
    test: OnTest | None = None
    """The best round on the test prompts, or the last one that was folded where none is best."""
    test_reason: str = "the test prompts were not read"
    """Why there is no reading on them."""
    stages: tuple[StageMark, ...] = ()
    error: str = ""

    @field_validator("config")
    @classmethod
    def _settings_that_are_read(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Leaves out what older records hold and nothing reads, so that such a run goes on."""
        config = dict(config)
        for group, name in UNREAD_SETTINGS:
            if isinstance(config.get(group), dict):
                config[group] = {key: v for key, v in config[group].items() if key != name}
        return config
