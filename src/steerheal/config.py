"""Settings: one small frozen model per stage, composed in `RunConfig`; presets; no torch.

The sentence under a setting is its only documentation: the command line shows it as help.
"""

import json
import tomllib
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from steerheal.bounds import (
    Amount,
    Band,
    BelowOne,
    Count,
    CountOrNone,
    Dose,
    Fraction,
    Inside,
    Label,
    Place,
    PositiveAmount,
    PositiveFraction,
    Power,
    Rank,
    Rounds,
    Rows,
    Seed,
    Temperature,
    Tokens,
    TokensOrNone,
    TopK,
    allowed,
    read_text,
    shorten,
)
from steerheal.errors import UserError, unknown
from steerheal.line import As
from steerheal.prompts import lines

MOST_LISTED = 64
Doses = Annotated[tuple[Dose, ...], Field(max_length=MOST_LISTED)]
Conditions = Annotated[tuple[Literal["other", "self"], ...], Field(min_length=1, max_length=2)]
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


OWN_VARIABLES = ("messages", "tools", "documents", "add_generation_prompt", "strftime_now")
"""What a chat template is given anyway, and no setting may replace."""


def template_variables(words: object) -> object:
    """Variables off the command line: JSON objects or NAME=VALUE, a value read as JSON if it is.

    What is no list of words goes through as it is.

    Raises:
        ValueError: a word that is neither.
    """
    if not isinstance(words, list):
        return words
    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        whole = _json_or(word, None)
        if isinstance(whole, dict):
            found |= whole
        elif equals and name.isidentifier():
            found[name] = _json_or(text, text)
        else:
            raise ValueError(f"{word!r} is neither a JSON object nor NAME=VALUE")
    return found


def _json_or(text: str, otherwise: Any) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return otherwise


def _free_names(variables: dict[str, Any]) -> dict[str, Any]:
    for name in variables:
        if not name.isidentifier() or name.startswith("_") or name in OWN_VARIABLES:
            raise ValueError(f"{name!r} cannot be set in a chat template")
    return json.loads(json.dumps(variables, allow_nan=False))


def _is_a_date(text: str) -> str:
    try:
        if text:
            datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("needs a date such as 2026-03-14 or 2026-03-14T09:30") from None
    return text


TemplateVariables = Annotated[
    dict[str, Any], BeforeValidator(template_variables), AfterValidator(_free_names)
]
Date = Annotated[Label, AfterValidator(_is_a_date)]


class ModelSettings(Settings):
    """Which model, in which precision, where."""

    name: Annotated[Place, As(also=("--model",))] = ""
    """Empty: the embedded SmolLM2-135M-Instruct; else a hub id, a local folder or a GGUF file."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights; auto is float32 on a CPU and bfloat16 on a GPU."""
    device: Label = "auto"
    """Where it runs: auto, cpu, cuda, cuda:1, mps."""
    revision: Place | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Let the model's repository run its own Python code on this machine."""
    template: Place = ""
    """Jinja file with a chat template, in place of the model's own."""

    template_vars: TemplateVariables = {}
    """Variables of the chat template, as NAME=VALUE or one JSON object: enable_thinking=true lets
    a model think. Thinking is off where the template has a switch for it."""
    date: Date = ""
    """Date, or date and time, that a chat template prints, such as 2026-03-14; empty is now, once
    for the whole run. A template without a date does not read it."""

    def template_text(self) -> str:
        """What the template file holds; empty where none is given.

        Raises:
            UserError: unreadable, too large, not UTF-8, or empty.
        """
        if not self.template:
            return ""
        text = read_text(Path(self.template), what="the chat template", most=MOST_BYTES)
        if not text.strip():
            raise UserError(f"The chat template {self.template} is empty. Give one with text.")
        return text


class VectorSettings(Settings):
    """How the steering vector is extracted."""

    contrast: Literal["negative", "neutral"] = "negative"
    """The pole that the positive one is compared with."""
    contexts: Count = 256
    """Diverse user messages averaged over; more gives a less noisy direction."""
    band: Band = (0.4, 0.6)
    """Blocks that are steered, as fractions of depth; a wide band compounds and collapses."""
    method: VectorMethod = "mean_difference"
    """How the poles' states become a direction. ablation and cosine_gate use the mean difference
    and differ in how they act; random is the control that moves the model as far."""
    position: Literal["tag", "last", "mean"] = "tag"
    """Where states are read: at the assistant tag, or at the last token or over the mean of a short
    answer by each pole. contrastive_answers always takes the mean, with no system prompt."""
    answer_tokens: Tokens = 24
    """Longest answer that a pole writes to be read, in tokens."""
    energy: PositiveFraction = 0.9
    """s_space: share of what a block can write that the kept directions hold; 1 keeps all."""
    seed: Seed = 0
    """random: which directions are drawn."""


class SamplingSettings(Settings):
    """How completions are sampled."""

    tokens: Tokens = 64
    """Longest completion, in tokens."""
    temperature: Temperature = 1.0
    """Softmax temperature; 0 is greedy."""
    top_p: PositiveFraction = 0.95
    """Nucleus: the smallest set of tokens that holds this much probability."""
    top_k: TopK = 0
    """Only the k likeliest tokens; 0 is no limit."""
    rows: Rows = 48
    """Rows sampled together; halved when memory runs out."""


class PushSettings(Settings):
    """How the dose runs along a completion of the training data; a constant dose is the default."""

    decay: Literal["constant", "linear", "exponential"] = "constant"
    """How the dose falls with the token's position."""
    decay_tokens: Tokens = 64
    """linear: the dose is 0 from this token on; exponential: it halves every so many tokens."""
    kl_budget: Amount = 0.0
    """Most nats of KL(steered‖base) at any token; the dose is lowered where it would be more, as
    far as the token's own dose can. 0 is no budget. The base runs along in the same batch."""
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
    """walk-C: the sweep of doses and how it walks down until enough completions survive."""

    start: Dose = 1.0
    """Multiplier tried first in every round; 1 adds the raw difference of the two poles."""
    sweep: Annotated[Doses, Field(min_length=1)] = (0.5, 0.75, 1.0)
    """Doses in one batch, as fractions of the multiplier."""
    target: PositiveFraction = 0.75
    """Share of completions that must survive the filter before the multiplier is accepted."""
    step: Inside = 0.75
    """Factor on the multiplier at each step down."""
    walks: Count = 6
    """Most multipliers tried in a round."""
    want: Count = 64
    """Kept completions a round trains on."""
    minimum: Annotated[Count, Field(ge=2)] = 16
    """Fewest kept completions a round may train on; with fewer it ends as starved."""
    batches: Count = 4
    """Most batches drawn at the accepted multiplier."""

    @model_validator(mode="after")
    def _wants_at_least_the_minimum(self) -> Self:
        if self.want < self.minimum:
            raise ValueError(f"want ({self.want}) must be at least minimum ({self.minimum})")
        return self


class FilterSettings(Settings):
    """Which completions are kept."""

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
    lam: Amount = 0.3
    """λ: weight of the barrier; 0 is no barrier."""
    tau: Amount = 0.1
    """τ in nats: D below it costs nothing. Above the operating divergence it never fires."""
    lam_power: Power = 0.0
    """λ in round r is λ·(1+r)^power; below 0 it loosens as the history grows."""
    spectral: Amount = 0.0
    """Weight of the operator norm of every adapted layer's ΔW, summed over the layers, so that a
    layer pays the same however many others there are; 0 is no penalty. Goes with any barrier."""
    rank: Rank = 16
    """Rank of the adapter."""
    alpha: PositiveAmount = 32.0
    """The adapter's output is scaled by alpha / rank, rslora's by alpha / √rank."""
    adapter: Literal["lora", "rslora", "dora", "pissa"] = "lora"
    """Kind: lora; rslora keeps its size as the rank grows; pissa starts from the weights' leading
    singular part and is stored at twice the rank. dora cannot be folded and is refused."""
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

    instrument: Annotated[Instrument, As(also=("--instrument",))] = "auto"
    """likelihood, forced_choice (the tinymfv protocol), moralmaps (upstream itself, if installed),
    or auto: forced_choice if the base can answer it, else likelihood."""
    protocol: Place = ""
    """JSON file with forced_choice's wording; empty for the bundled one."""
    think: TokensOrNone = 128
    """forced_choice: tokens of thinking before the answer; 0 is none."""
    orders: Literal["two", "cyclic"] = "two"
    """forced_choice: the options forwards and backwards, or every option once at every position."""
    vignettes: Place = "everyday"
    """Bundled set (everyday, ai), a JSONL file in tinymfv's fields, or wassname/tiny-mfv:SET."""
    conditions: Conditions = ("other",)
    """Who acts in the vignettes: someone else, or the reader."""
    per_foundation: CountOrNone = 0
    """Vignettes per foundation, a stratified subset; 0 is all of them."""
    prompts: Annotated[Count, Field(ge=2)] = 32
    """The persona's evaluation prompts that are answered freely."""
    tokens: Tokens = 48
    """Longest free answer, in tokens."""
    long_prompts: CountOrNone = 8
    """Open prompts answered at length, for long-form health; 0 is none."""
    long_tokens: Tokens = 128
    """Longest of those answers, in tokens."""
    json_prompts: CountOrNone = 12
    """Requests for JSON that are answered freely; 0 is none."""

    @field_validator("long_prompts", "json_prompts")
    @classmethod
    def _as_many_as_bundled(cls, count: int, info: ValidationInfo) -> int:
        pool = {"long_prompts": "open", "json_prompts": "json"}[str(info.field_name)]
        if count > len(lines(pool)):
            raise ValueError(f"at most {len(lines(pool))} are bundled")
        return count


class CheckSettings(Settings):
    """The sweep of doses that is read before the first harvest."""

    doses: Doses = (0.5, 1.0)
    """Doses read, as multiples of the one the walk starts at; none switches the sweep off."""
    control: bool = True
    """Also read a random vector whose KL equals that of the largest dose."""
    prompts: Annotated[Count, Field(ge=2)] = 16
    """The persona's evaluation prompts that every dose answers."""
    per_foundation: CountOrNone = 8
    """Vignettes per foundation, of those that an evaluation reads; 0 is all of these."""
    tokens: Tokens = 40
    """Longest free answer, in tokens."""
    base_texts: Count = 8
    """Answers of the base that the control's KL is matched on."""


class RunConfig(Settings):
    """Everything a run depends on, and nothing else."""

    persona: Annotated[Place, As(hidden=True)] = "love"
    """A built-in persona or a TOML file."""
    reverse: bool = False
    """Swap the persona's poles: less of the trait instead of more."""
    seed: Seed = 0
    """Seed of everything random; same settings, same record."""
    rounds: Rounds = 4
    """Most rounds of the loop."""
    gate: PositiveFraction = 1.0
    """Gate at which a finished round is folded in."""
    coherence_floor: Fraction = 0.95
    """The loop stops when answer mass falls below this share of the base's."""
    kl_budget: Amount = 0.0
    """The loop stops once this many nats of KL per token are spent: the rounds' sum, or the
    student's own KL to the base where that is more, and the best round is one within it; 0 is no
    budget. Steering without healing is published to break down near 1.7."""
    patience: CountOrNone = 2
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


def unlike(a: object, b: object, path: str = "") -> dict[str, tuple[object, object]]:
    """Both values of every setting that differs, by its dotted name."""
    if isinstance(a, dict) and isinstance(b, dict):
        found: dict[str, tuple[object, object]] = {}
        for name in sorted(a.keys() | b.keys()):
            found |= unlike(a.get(name), b.get(name), f"{path}.{name}".lstrip("."))
        return found
    return {} if a == b else {path: (a, b)}


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


MOST_BYTES = 8_000_000
"""Largest settings or persona file that is read."""


def read_toml(file: Path) -> dict[str, Any]:
    """A TOML file's content.

    Raises:
        UserError: unreadable, too large, nested too deeply, or not TOML.
    """
    text = read_text(file.expanduser(), what="the file", most=MOST_BYTES)
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise UserError(f"{file} is nested too deeply to be read.") from error
    except ValueError as error:
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


def problems(
    kind: type[BaseModel],
    error: ValidationError,
    name: Callable[[Sequence[str | int]], str] = lambda path: ".".join(map(str, path)),
) -> list[str]:
    """One sentence per validation problem: setting, what was given, what is allowed.

    Args:
        kind: What was to be made.
        error: Why it could not be.
        name: What the user calls the setting at a place in it.
    """
    return [_sentence(kind, item, name) for item in _first_each(error.errors())]


def _first_each(items: Sequence[Any]) -> list[Any]:
    """One problem per setting: a union complains once for each of its members, a list per item."""
    found: dict[tuple[str, ...], Any] = {}
    for item in items:
        found.setdefault(tuple(part for part in item["loc"] if isinstance(part, str)), item)
    return list(found.values())


def _sentence(kind: type[BaseModel], item: Any, name: Callable[[Sequence[str | int]], str]) -> str:
    path, what = item["loc"], item["type"]
    if what == "extra_forbidden":
        return str(unknown("setting", str(path[-1]), _fields_at(kind, path[:-1])))
    field, place = _field_at(kind, path)
    called = name(place)
    if what == "missing":
        return f"{called or path[-1]} is missing"
    given = shorten(item["input"]) if item["input"] not in ("", (), []) else "nothing"
    if what in ("value_error", "assertion_error"):
        said = item["msg"].removeprefix("Value error, ")
        return f"{called}: {said} (given: {given})" if field else f"{called}: {said}".lstrip(": ")
    if field is None:
        return f"{called + ': ' if called else ''}{item['msg']} (given: {given})"
    return f"{called}: given {given}; allowed: {allowed(field.annotation, tuple(field.metadata))}"


def _field_at(
    kind: type[BaseModel], path: Sequence[str | int]
) -> tuple[FieldInfo | None, Sequence[str | int]]:
    """The field that a place lies in, and the place without what a type adds to it."""
    field: FieldInfo | None = None
    for depth, part in enumerate(path):
        if part not in kind.model_fields:
            return field, path[: depth + isinstance(part, int)]
        field = kind.model_fields[str(part)]
        inner = field.annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            items = path[depth + 1 : depth + 2]
            return field, path[: depth + 1 + bool(items and isinstance(items[0], int))]
        kind, field = inner, None
    return None, path


def _fields_at(kind: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    for name in path:
        field = kind.model_fields.get(str(name))
        inner = field.annotation if field else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            kind = inner
    return list(kind.model_fields)
