"""Everything a run depends on, and its presets."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import model_validator

from steerheal.bounds import Amount, CountOrNone, Fraction, Place, PositiveFraction, Rounds, Seed
from steerheal.config.base import Settings
from steerheal.config.measuring import CheckSettings, MeasureSettings
from steerheal.config.model import ModelSettings
from steerheal.config.steering import DoseSettings, PushSettings, SamplingSettings, VectorSettings
from steerheal.config.training import FilterSettings, HealSettings
from steerheal.config.validation import read_toml, validated
from steerheal.errors import unknown
from steerheal.line import As
from steerheal.tables import ENGINES, INSTRUMENTS, METHODS, TEACHERS, Table


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
    teacher: Annotated[str, TEACHERS] = "vector"
    """What writes the text that is trained on; its dose is walked where it has one."""
    teacher_epsilon: Fraction = 0.05
    """plausible: ε, the share of the base's likeliest token's probability that a token needs; at 0
    it is vector."""
    gate: PositiveFraction = 1.0
    """Gate, which is the adapter's scale, at which a finished round is folded into the weights."""
    coherence_floor: Fraction = 0.95
    """The loop stops when coherence is shown to be below this share of the base's."""
    kl_budget: Amount = 0.0
    """The loop stops once this many nats of KL per token are spent: the rounds' sum, or the
    student's own KL to the base where that is more; 0 is no budget. The best round is one within
    it. Published work saw steering without healing break down near 1.7."""
    patience: CountOrNone = 2
    """The loop stops when this many rounds in a row have not raised the trait above the best round
    before them, both net of their controls; 0 goes on."""
    read_steered: bool = True
    """Read the steered student each round. Without it a round is faster, and retain, recovered
    and what check 3 makes of them are unknown."""
    control: bool = True
    """Train the same heal on unsteered answers to the same prompts after every round that folds,
    and give every trait beside it: what training alone does is no effect of the vector. A round
    takes about a fifth longer."""
    read_prompted: bool = True
    """Read the base under the persona's system prompt once, so that the trait is also said as a
    share of what that prompt does."""
    judge: Place = ""
    """Another model that judges the answers at the end. It says whether the free answers of every
    state and dose make sense, and how much of the trait they have: a chat model as a hub id, a
    local folder or a GGUF file. It counts as a reading of coherence if it tells labelled replies
    well enough, which is measured first; it is loaded when the run's own model is done, and nothing
    is decided by it."""
    model: ModelSettings = ModelSettings()
    vector: VectorSettings = VectorSettings()
    sampling: SamplingSettings = SamplingSettings()
    push: PushSettings = PushSettings()
    dose: DoseSettings = DoseSettings()
    filter: FilterSettings = FilterSettings()
    heal: HealSettings = HealSettings()
    measure: MeasureSettings = MeasureSettings()
    check: CheckSettings = CheckSettings()

    @model_validator(mode="after")
    def _starts_from_what_it_can_read(self) -> Self:
        model = self.model
        if self.heal.adapter == "pissa" and (model.shard or model.quantize != "none"):
            how = (
                "model.shard shares out"
                if model.shard
                else f"model.quantize {model.quantize} packs"
            )
            raise ValueError(
                "heal.adapter pissa starts from singular values of the weights, which "
                f"{how}; use lora or rslora"
            )
        return self

    def named(self) -> tuple[tuple[Table, str], ...]:
        """What it names of the open sets."""
        own = (
            (METHODS, self.vector.method),
            (TEACHERS, self.teacher),
            (INSTRUMENTS, self.measure.instrument),
            (ENGINES, self.sampling.engine),
        )
        return (*own, *self.heal.named())


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "rounds": 1,
        "read_prompted": False,
        "vector": {"contexts": 48},
        "heal": {"epochs": 3},
        "sampling": {"tokens": 48},
        "dose": {
            "coherence": 0.75,
            "curve_prompts": 12,
            "curve_tokens": 48,
            "want": 40,
            "minimum": 12,
            "batches": 2,
        },
        "measure": {
            "instrument": "likelihood",
            "per_foundation": 1,
            "statements": 8,
            "prompts": 20,
            "tokens": 32,
            "long_prompts": 0,
            "json_prompts": 0,
            "held_out_pairs": 1,
            "control_prompts": 8,
            "control_tokens": 16,
            "tasks": 8,
            "task_tokens": 16,
        },
        "check": {
            "doses": (0.5, 1.5),
            "control": False,
            "prompts": 8,
            "per_foundation": 1,
            "tokens": 16,
            "base_texts": 4,
        },
        "filter": {"calibration_texts": 64},
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
        values = merge(values, read_toml(file, RunConfig))
    return validated(RunConfig, values, source=str(file or f"preset {preset}"))
