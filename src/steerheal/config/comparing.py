"""What a comparison holds against what: its arms, how far their curves go, and what is primary."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from steerheal.bounds import Count, FolderName, Label, Text
from steerheal.config.base import MOST_LISTED, Doses, Settings
from steerheal.config.run import PRESETS, RunConfig, merge
from steerheal.config.validation import read_toml, validated
from steerheal.errors import UserError, unknown
from steerheal.tables import ARM_KINDS, NO_BARRIER

OPEN = ("rounds", "teacher", "teacher_epsilon", "vector", "push", "dose", "filter", "heal")
"""Settings of a run that an arm may change; every other decides how all arms are read."""
SMALLER: dict[str, Any] = {
    "read_prompted": False,
    "dose": {"want": 32},
    "filter": {"read_trait": False},
    "measure": {
        "per_foundation": 1,
        "statements": 2,
        "prompts": 16,
        "tokens": 24,
        "held_out_pairs": 2,
        "control_prompts": 8,
        "tasks": 0,
    },
}
"""What preset quick does less of here, where a score of states is read at every seed."""


class ArmSettings(Settings):
    """One arm: where its state comes from, and which points of its curve are read."""

    name: FolderName
    """What tables and figures call it; lower-case words joined by hyphens read best."""
    kind: Annotated[str, ARM_KINDS]
    """How its states are made."""
    says: Label = ""
    """What it is, for who reads the table; the kind's own sentence when it is empty."""
    points: Doses = ()
    """Gates, doses, strengths or epochs that are read; the comparison's own when none are given."""
    system: Annotated[str, Text] | None = None
    """Text of kind prompt."""
    settings: dict[str, Any] = {}
    """What the arm changes of the run's settings, as in a run's own file: heal, dose, teacher."""


class ArmsFile(Settings):
    """Arms of one's own, as a file holds them: `[[arm]]` tables."""

    arm: Annotated[tuple[ArmSettings, ...], Field(min_length=1, max_length=MOST_LISTED)]


BASE = "base"
BUILT_IN = tuple(
    ArmSettings.model_validate(arm)
    for arm in (
        {"name": BASE, "kind": "base"},
        {"name": "prompt", "kind": "prompt", "says": "the positive pole as system prompt"},
        {"name": "engineered", "kind": "engineered"},
        {"name": "contrast", "kind": "contrast", "says": "contrastive prompt decoding"},
        {"name": "vector", "kind": "steered", "says": "the raw vector, by a hook"},
        {"name": "random", "kind": "random"},
        {
            "name": "nll",
            "kind": "trained",
            "says": "steered text, distilled: no barrier, no anchor",
            "settings": {"heal": {"barrier": NO_BARRIER, "anchor": 0.0}},
        },
        {
            "name": "prompted",
            "kind": "trained",
            "says": "fine-tuned on text under the system prompt",
            "settings": {"teacher": "prompt"},
        },
        {"name": "unsteered", "kind": "unsteered", "says": "fine-tuned on the model's own text"},
        {"name": "weights", "kind": "weights", "says": "weight steering by prompted text"},
        {
            "name": "anchor",
            "kind": "trained",
            "says": "steered text, healed with an anchor off the trait",
            "settings": {"heal": {"anchor": 3.0}},
        },
    )
)


class CompareSettings(Settings):
    """What is compared, and what is said first; it is written down before anything is run."""

    seeds: Annotated[Count, Field(le=100)] = 3
    """Seeds, from the run's own up; each makes its own text, adapters and answers."""
    ours: Label = "anchor"
    """The arm that every other one is held against."""
    against: Label = "prompt"
    """The arm of the primary comparison, which is printed first."""
    trait: Label = "trait_held_out"
    """The reading of free answers that arms are compared by."""
    damage: Label = "answers_implausible"
    """The reading of free answers at which arms are made equal, besides KL."""
    read_on: Literal["evaluate", "test"] = "evaluate"
    """The persona's prompts that every state answers. Settings that were chosen on the evaluation
    prompts, as tune's are, want to be compared on the test prompts."""
    gates: Annotated[Doses, Field(min_length=1)] = (0.25, 0.5, 0.75, 1.0, 1.25)
    """Gates of an arm that trains; 0 is the base and is not read again."""
    doses: Annotated[Doses, Field(min_length=1)] = (0.25, 0.5, 0.75, 1.0, 1.5)
    """Doses of an arm that steers, as multiples of the one that the run would steer at."""
    strengths: Annotated[Doses, Field(min_length=1)] = (0.25, 0.5, 1.0, 2.0)
    """β of contrastive decoding."""
    epochs: Annotated[tuple[Count, ...], Field(min_length=1, max_length=MOST_LISTED)] = (1, 2, 4, 6)
    """Epochs of an arm that trains ever longer."""
    persistence: bool = True
    """Read the base, `against` and `ours` also on mundane prompts, under a counter-prompt, under an
    unrelated system prompt, in the third turn of a conversation, at four times the length, and at
    temperatures 0 and 1, at the end of their curves."""

    @model_validator(mode="after")
    def _two_arms(self) -> Self:
        if self.ours == self.against:
            raise ValueError(f"ours and against must be two arms, not both {self.ours!r}")
        return self


QUICK: dict[str, Any] = {
    "seeds": 2,
    "gates": (0.5, 1.0),
    "doses": (0.5, 1.0),
    "strengths": (0.5,),
    "persistence": False,
}


def presets(preset: str, file: Path | None) -> tuple[RunConfig, CompareSettings]:
    """Settings of the runs and of their comparison, by a preset and a TOML file on top.

    Raises:
        UserError: unknown preset, unreadable file, wrong name, type or bound.
    """
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    quick = preset == "quick"
    values = merge(PRESETS[preset], SMALLER) if quick else PRESETS[preset]
    if file is not None:
        values = merge(values, read_toml(file, RunConfig))
    source = str(file or f"preset {preset}")
    return validated(RunConfig, values, source=source), CompareSettings(**QUICK if quick else {})


def chosen_arms(file: Path | None, only: Sequence[str]) -> tuple[ArmSettings, ...]:
    """The built-in arms and a file's, or those of them that are named; the base is always one.

    Raises:
        UserError: a file that cannot be used, a name twice, or one that no arm has.
    """
    own = validated(ArmsFile, read_toml(file, ArmsFile), source=str(file)).arm if file else ()
    found: dict[str, ArmSettings] = {}
    for arm in (*BUILT_IN, *own):
        if arm.name in found:
            raise UserError(f"{file} holds an arm {arm.name!r} that there is already. Rename it.")
        found[arm.name] = arm
    for name in only:
        if name not in found:
            raise unknown("arm", name, found)
    return tuple(arm for arm in found.values() if not only or arm.name in (BASE, *only))


def of_arm(config: RunConfig, arm: ArmSettings) -> RunConfig:
    """The run's settings with what the arm changes of them; one round unless it says more.

    The seed of a random vector is counted from the run's.

    Raises:
        UserError: a setting that no arm may change, or a wrong value.
    """
    for name in arm.settings:
        if name not in OPEN:
            raise unknown(f"setting of arm {arm.name}", name, OPEN)
    values = merge(config.model_dump() | {"rounds": 1}, arm.settings)
    if values["vector"]["method"] == "random":
        values["vector"]["seed"] += config.seed  # a control of directions, another at every seed
    return validated(RunConfig, values, source=f"arm {arm.name}")
