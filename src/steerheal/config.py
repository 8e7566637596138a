"""Settings: one small frozen model per stage, composed in `RunConfig`; presets; no torch.

The sentence under a setting is its only documentation: the command line shows it as help.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import tyro
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from steerheal.errors import UserError, unknown

Fraction = Annotated[float, Field(ge=0, le=1)]
Band = tuple[Fraction, Fraction]
Instrument = Literal["auto", "likelihood", "forced_choice", "moralmaps"]
VectorMethod = Literal[
    "mean_difference",
    "pca",
    "single_pair",
    "contrastive_answers",
    "s_space",
    "random",
    "ablation",
    "cosine_gate",
]
S = TypeVar("S", bound=BaseModel)


class Settings(BaseModel):
    """Frozen, bounded, and closed to unknown names."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @model_validator(mode="after")
    def _bands_rise(self) -> Self:
        band = getattr(self, "band", None)
        if band is not None and band[0] >= band[1]:
            raise ValueError(f"band must rise: its start {band[0]} is not below its end {band[1]}")
        return self


class ModelSettings(Settings):
    """Which model, in which precision, where."""

    name: Annotated[str, tyro.conf.arg(aliases=("--model",))] = ""
    """Empty: the embedded SmolLM2-135M-Instruct; else a hub id, a local folder or a GGUF file."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights; auto is float32 on a CPU and bfloat16 on a GPU."""
    device: str = "auto"
    """Where it runs: auto, cpu, cuda, cuda:1, mps."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Let the model's repository run its own Python code on this machine."""


class VectorSettings(Settings):
    """How the steering vector is extracted."""

    contrast: Literal["negative", "neutral"] = "negative"
    """The pole that the positive one is compared with."""
    contexts: int = Field(default=256, ge=1)
    """Diverse user messages averaged over; more gives a less noisy direction."""
    band: Band = (0.4, 0.6)
    """Blocks that are steered, as fractions of depth; a wide band compounds and collapses."""
    method: VectorMethod = "mean_difference"
    """How the poles' states become a direction. ablation and cosine_gate use the mean difference
    and differ in how they act; random is the control that moves the model as far."""
    position: Literal["tag", "last", "mean"] = "tag"
    """Where states are read: at the assistant tag, or at the last token or over the mean of a short
    answer by each pole. contrastive_answers always takes the mean, with no system prompt."""
    answer_tokens: int = Field(default=24, ge=1)
    """Longest answer that a pole writes to be read, in tokens."""
    energy: float = Field(default=0.9, gt=0, le=1)
    """s_space: share of what a block can write that the kept directions hold; 1 keeps all."""
    seed: int = Field(default=0, ge=0)
    """random: which directions are drawn."""


class SamplingSettings(Settings):
    """How completions are sampled."""

    tokens: int = Field(default=64, ge=1)
    """Longest completion, in tokens."""
    temperature: float = Field(default=1.0, ge=0)
    """Softmax temperature; 0 is greedy."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Nucleus: the smallest set of tokens that holds this much probability."""
    top_k: int = Field(default=0, ge=0)
    """Only the k likeliest tokens; 0 is no limit."""
    rows: int = Field(default=48, ge=1)
    """Rows sampled together; halved when memory runs out."""


class PushSettings(Settings):
    """How the dose runs along a completion of the training data; a constant dose is the default."""

    decay: Literal["constant", "linear", "exponential"] = "constant"
    """How the dose falls with the token's position."""
    decay_tokens: int = Field(default=64, ge=1)
    """linear: the dose is 0 from this token on; exponential: it halves every so many tokens."""
    kl_budget: float = Field(default=0.0, ge=0)
    """Most nats of KL(steered‖base) at any token; the dose is lowered where it would be more, as
    far as the token's own dose can. 0 is no budget. The base runs along in the same batch."""
    backtrack: bool = False
    """Take tokens back where the text loops or its KL spikes, and go on at a lower dose."""
    spike: float = Field(default=0.0, ge=0)
    """Mean nats of KL to the base over eight tokens that count as a spike; 0 looks for loops only,
    and needs no base in the batch."""
    factor: float = Field(default=0.5, ge=0, lt=1)
    """The dose after a rewind, as a share of the dose before it."""
    rewinds: int = Field(default=4, ge=1)
    """Most rewinds per completion; what breaks after them is left to the filter."""


class DoseSettings(Settings):
    """walk-C: the sweep of doses and how it walks down until enough completions survive."""

    start: float = Field(default=1.0, gt=0)
    """Multiplier tried first in every round; 1 adds the raw difference of the two poles."""
    sweep: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(0.5, 0.75, 1.0), min_length=1)
    """Doses in one batch, as fractions of the multiplier."""
    target: float = Field(default=0.75, gt=0, le=1)
    """Share of completions that must survive the filter before the multiplier is accepted."""
    step: float = Field(default=0.75, gt=0, lt=1)
    """Factor on the multiplier at each step down."""
    walks: int = Field(default=6, ge=1)
    """Most multipliers tried in a round."""
    want: int = Field(default=64, ge=1)
    """Kept completions a round trains on."""
    minimum: int = Field(default=16, ge=2)
    """Fewest kept completions a round may train on; with fewer it ends as starved."""
    batches: int = Field(default=4, ge=1)
    """Most batches drawn at the accepted multiplier."""

    @model_validator(mode="after")
    def _wants_at_least_the_minimum(self) -> Self:
        if self.want < self.minimum:
            raise ValueError(f"want ({self.want}) must be at least minimum ({self.minimum})")
        return self


class FilterSettings(Settings):
    """Which completions are kept."""

    tail_perplexity: float = Field(default=4.0, gt=0)
    """Highest perplexity of a completion's last quarter under the base, in multiples of the base's
    median on its own text: collapse comes late."""
    word_repetition: float = Field(default=0.35, ge=0, le=1)
    """Highest share of word trigrams that repeat an earlier one."""
    char_repetition: float = Field(default=0.5, ge=0, le=1)
    """Highest share of character 8-grams that repeat an earlier one."""
    words: int = Field(default=8, ge=1)
    """Fewest words."""
    false_drop: float = Field(default=0.05, ge=0, lt=1)
    """Share of the base's own text that the combined rule for incoherence may drop: its limit is
    set there. 0 switches the rule off."""
    rule_drop: float = Field(default=0.01, ge=0, lt=1)
    """The same for every single calibrated rule (a stretch the base cannot follow, compression,
    distinct bigrams, foreign characters); 0 switches them off."""
    kl_spike: float = Field(default=8.0, gt=0)
    """Most nats of KL(steered‖base), mean over any eight tokens in a row."""
    similarity: float = Field(default=0.5, gt=0)
    """Highest share of a pole's own words in first-person sentences; above it the text narrates."""
    trait: float = Field(default=0.0, ge=0, lt=1)
    """Share of the base's own text whose persona log-odds a completion must exceed, so that
    base-like text is left out; 0 switches the rule off."""
    read_trait: bool = True
    """Read every completion's persona log-odds, which is two thirds of the filter's time. Without
    it what check 2 says of the kept text's trait is unknown."""
    calibration_texts: int = Field(default=64, ge=8)
    """Completions of the base that the limits are set on."""

    @model_validator(mode="after")
    def _rules_on_what_is_read(self) -> Self:
        if self.trait and not self.read_trait:
            raise ValueError(f"the trait rule (trait {self.trait:g}) needs read_trait")
        return self


NO_DORA = (
    "DoRA scales every row of a weight anew, so that its difference to the weight has full rank: "
    "no small adapter holds it, and a dense copy per round would need as much memory as the "
    "adapted layers. Use lora, rslora or pissa"
)


class HealSettings(Settings):
    """How the adapter is trained: L = fit + λ·relu(D − τ) + spectral·Σ‖ΔW‖."""

    objective: Literal["sft", "distill"] = "sft"
    """The fit: cross-entropy of the completions' tokens, or KL(teacher‖student) to the steered
    teacher's whole distribution at each of them, under the dose that the completion was drawn at.
    distill reads a per-token dose trace as its nominal dose."""
    barrier: Literal["nll", "kl_fwd", "kl_rev"] = "nll"
    """D: none, KL(reference‖student), or KL(student‖reference), in nats per position. None is the
    default: on the embedded model none was seen to give more trait at the same price
    (docs/results.md). aggregate, reference, lam, tau and lam_power belong to a barrier."""
    aggregate: Literal["mean", "rmse", "p95", "max"] = "rmse"
    """How D is aggregated over the completion positions of a batch."""
    reference: Literal["prev", "base"] = "prev"
    """The student before this round (a trust region) or the round-0 model (a leash)."""
    lam: float = Field(default=0.3, ge=0)
    """λ: weight of the barrier; 0 is no barrier."""
    tau: float = Field(default=0.1, ge=0)
    """τ in nats: D below it costs nothing. Above the operating divergence it never fires."""
    lam_power: float = 0.0
    """λ in round r is λ·(1+r)^power; below 0 it loosens as the history grows."""
    spectral: float = Field(default=0.0, ge=0)
    """Weight of the operator norm of every adapted layer's ΔW, summed over the layers, so that a
    layer pays the same however many others there are; 0 is no penalty. Goes with any barrier."""
    rank: int = Field(default=16, ge=1)
    """Rank of the adapter."""
    alpha: float = Field(default=32.0, gt=0)
    """The adapter's output is scaled by alpha / rank, rslora's by alpha / √rank."""
    adapter: Literal["lora", "rslora", "dora", "pissa"] = "lora"
    """Kind: lora; rslora keeps its size as the rank grows; pissa starts from the weights' leading
    singular part and is stored at twice the rank. dora cannot be folded and is refused."""
    targets: tuple[str, ...] = Field(default=("all",), min_length=1)
    """Linear layers of the band's blocks that get an adapter: all, attention, mlp (the others of
    a block), or names such as q_proj."""
    band: Band = (0.2, 0.8)
    """Blocks that get an adapter, as fractions of depth."""
    epochs: int = Field(default=2, ge=1)
    """Passes over the kept completions."""
    rows: int = Field(default=8, ge=1)
    """Completions per optimiser step."""
    accumulate: int = Field(default=1, ge=1)
    """Micro-batches a step's rows are split into; more needs less memory and more time, and changes
    nothing else. Each is split further by length where that saves padding."""
    lr: float = Field(default=5e-4, gt=0)
    """Peak learning rate: linear warm-up, then a cosine to 0."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps that warm up."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay on the adapter; goes with any barrier."""
    beta2: float = Field(default=0.95, gt=0, lt=1)
    """Adam's second-moment decay; 0.95 warms up within a round."""
    clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm; a larger gradient is scaled down to it."""
    held_out: float = Field(default=0.1, ge=0, lt=1)
    """Share of the kept completions that only measures the held-out CE."""

    @field_validator("adapter")
    @classmethod
    def _can_be_folded(cls, adapter: str) -> str:
        if adapter == "dora":
            raise ValueError(f"dora cannot be folded. {NO_DORA}")
        return adapter

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


class MeasureSettings(Settings):
    """What an evaluation reads."""

    instrument: Annotated[Instrument, tyro.conf.arg(aliases=("--instrument",))] = "auto"
    """likelihood, forced_choice (the tinymfv protocol), moralmaps (upstream itself, if installed),
    or auto: forced_choice if the base can answer it, else likelihood."""
    protocol: str = ""
    """JSON file with forced_choice's wording; empty for the bundled one."""
    think: int = Field(default=128, ge=0)
    """forced_choice: tokens of thinking before the answer; 0 is none."""
    orders: Literal["two", "cyclic"] = "two"
    """forced_choice: the options forwards and backwards, or every option once at every position."""
    vignettes: str = "everyday"
    """Bundled set (everyday, ai), a JSONL file in tinymfv's fields, or wassname/tiny-mfv:SET."""
    conditions: tuple[Literal["other", "self"], ...] = Field(default=("other",), min_length=1)
    """Who acts in the vignettes: someone else, or the reader."""
    per_foundation: int = Field(default=0, ge=0)
    """Vignettes per foundation, a stratified subset; 0 is all of them."""
    prompts: int = Field(default=32, ge=2)
    """The persona's evaluation prompts that are answered freely."""
    tokens: int = Field(default=48, ge=1)
    """Longest free answer, in tokens."""
    long_prompts: int = Field(default=8, ge=0)
    """Open prompts answered at length, for long-form health; 0 is none."""
    long_tokens: int = Field(default=128, ge=1)
    """Longest of those answers, in tokens."""
    json_prompts: int = Field(default=12, ge=0)
    """Requests for JSON that are answered freely; 0 is none."""
    resamples: int = Field(default=2000, ge=100)
    """Bootstrap resamples behind every interval."""


class CheckSettings(Settings):
    """The sweep of doses that is read before the first harvest."""

    doses: tuple[Annotated[float, Field(gt=0)], ...] = (0.5, 1.0)
    """Doses read, as multiples of the one the walk starts at; none switches the sweep off."""
    control: bool = True
    """Also read a random vector whose KL equals that of the largest dose."""
    prompts: int = Field(default=16, ge=2)
    """The persona's evaluation prompts that every dose answers."""
    per_foundation: int = Field(default=8, ge=0)
    """Vignettes per foundation, of those that an evaluation reads; 0 is all of these."""
    tokens: int = Field(default=40, ge=1)
    """Longest free answer, in tokens."""
    base_texts: int = Field(default=8, ge=1)
    """Answers of the base that the control's KL is matched on."""


class RunConfig(Settings):
    """Everything a run depends on, and nothing else."""

    persona: Annotated[str, tyro.conf.Suppress] = "love"
    """A built-in persona or a TOML file."""
    reverse: bool = False
    """Swap the persona's poles: less of the trait instead of more."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything random; same settings, same record."""
    rounds: int = Field(default=4, ge=1)
    """Most rounds of the loop."""
    gate: float = Field(default=1.0, gt=0, le=1)
    """Gate at which a finished round is folded in."""
    coherence_floor: float = Field(default=0.95, ge=0, le=1)
    """The loop stops when answer mass falls below this share of the base's."""
    kl_budget: float = Field(default=0.0, ge=0)
    """The loop stops once this many nats of KL per token are spent: the rounds' sum, or the
    student's own KL to the base where that is more, and the best round is one within it; 0 is no
    budget. Steering without healing is published to break down near 1.7."""
    patience: int = Field(default=2, ge=0)
    """The loop stops when this many rounds in a row have not raised the trait above the best round
    before them; 0 goes on."""
    read_steered: bool = True
    """Read the steered student in every round. Without it a round is faster, and retain, recovered
    and what check 3 makes of them are unknown."""
    model: ModelSettings = ModelSettings()
    vector: VectorSettings = VectorSettings()
    sampling: SamplingSettings = SamplingSettings()
    push: PushSettings = PushSettings()
    dose: DoseSettings = DoseSettings()
    filter: FilterSettings = FilterSettings()
    heal: HealSettings = HealSettings()
    measure: MeasureSettings = MeasureSettings()
    check: CheckSettings = CheckSettings()


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "rounds": 2,
        "vector": {"contexts": 48},
        "sampling": {"tokens": 48},
        "dose": {"want": 48, "minimum": 12, "batches": 2},
        "measure": {
            "instrument": "likelihood",
            "per_foundation": 8,
            "prompts": 20,
            "tokens": 40,
            "long_prompts": 4,
            "long_tokens": 48,
            "json_prompts": 4,
        },
        "check": {
            "doses": (1.0,),
            "prompts": 10,
            "per_foundation": 3,
            "tokens": 24,
            "base_texts": 4,
        },
        "filter": {"calibration_texts": 32},
    },
    "standard": {},
    "full": {
        "rounds": 8,
        "sampling": {"tokens": 128},
        "dose": {"want": 128, "minimum": 32, "batches": 8},
        "heal": {"epochs": 3},
        "measure": {"tokens": 96, "long_prompts": 16, "long_tokens": 256},
    },
}


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested settings, `over` winning where both have a value."""
    both = dict(under)
    for name, value in over.items():
        old = both.get(name)
        both[name] = (
            merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return both


def resolve(preset: str = "standard", file: Path | None = None) -> RunConfig:
    """The preset's settings with a TOML file's on top.

    Raises:
        UserError: unknown preset, unreadable file, wrong name, type or bound.
    """
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    values = PRESETS[preset]
    if file is not None:
        values = merge(values, read_toml(file))
    return validated(RunConfig, values, source=str(file or f"preset {preset}"))


def read_toml(file: Path) -> dict[str, Any]:
    """A TOML file's content.

    Raises:
        UserError: unreadable, or not TOML.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read {file}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid TOML: {error}") from error


def validated(kind: type[S], values: object, *, source: str) -> S:
    """`values` as a `kind`; every problem is named with its setting in one message.

    Raises:
        UserError: a wrong name, type or bound.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{source}: " + "; ".join(problems(kind, error))) from error


def problems(kind: type[BaseModel], error: ValidationError) -> list[str]:
    """One sentence per validation problem: setting, what was given, what is allowed."""
    sentences = []
    for item in error.errors():
        path = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            known = _fields_at(kind, [str(part) for part in item["loc"][:-1]])
            sentences.append(str(unknown("setting", path.rpartition(".")[2], known)))
            continue
        message = item["msg"].removeprefix("Value error, ")
        given = f" (given: {item['input']!r})" if item["type"] != "missing" and path else ""
        sentences.append(f"{path + ': ' if path else ''}{message}{given}")
    return sentences


def _fields_at(kind: type[BaseModel], path: list[str]) -> list[str]:
    for name in path:
        field = kind.model_fields.get(name)
        inner = field.annotation if field else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            kind = inner
    return list(kind.model_fields)
