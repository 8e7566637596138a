"""A run: its rounds with what they read and what the checks saw, and the whole of it."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from steerheal.config import RunConfig, validated
from steerheal.errors import UserError
from steerheal.personas import Persona
from steerheal.records.base import VERSION, Reading, Record
from steerheal.records.curve import Curve
from steerheal.records.judge import Admission
from steerheal.records.readings import (
    UNREAD,
    Comparison,
    OnTest,
    Readings,
    Sight,
    Summary,
    Sweep,
)
from steerheal.records.text import Completion, WalkStep
from steerheal.records.training import HealLog

UNREAD_SETTINGS = (("measure", "resamples"),)
"""Settings of older records, by group and name."""


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


class Control(Record):
    """The round's heal on text that its student wrote unsteered: what training alone does."""

    texts: int
    reused: int
    """Texts of them that the filter was calibrated on."""
    unfiltered: int
    """Texts that stand although no draw passed the filter."""
    reason: str = ""
    """Why there is no reading."""
    read: Summary | None = None
    """Its student against the base."""
    retain: Reading = UNREAD
    """Healed less control, over the steered change of the trait."""


class RoundRecord(Record):
    """One round of the loop."""

    round: int
    multiplier: float
    walk: tuple[WalkStep, ...]
    kept: int
    """Completions that may be trained on."""
    drawn: int
    reasons: dict[str, int]
    outcome: Literal["folded", "starved", "rejected", "stopped"]
    """Stopped: the user asked to end after a check."""
    vector_norms: dict[int, float]
    """Norm of the vector per steered block."""
    direction_cosine: float
    """cos(v_r, v₀), mean over blocks."""
    held_to: str = ""
    """The last good student, where a heal's reference is that."""
    passed_over: int = 0
    """Completions that the filter kept and another draw of the same prompt was preferred to."""
    written_by: str = ""
    """The state that wrote the text, at the round's largest dose; empty where nothing is known."""
    steered: Summary | None = None
    healed: Summary | None = None
    retain: Reading | None = None
    """Healed over steered change of the trait, both from this round's student."""
    recovered: Reading | None = None
    """Coherence bought back: (healed − steered) / (base − steered)."""
    control: Control | None = None
    """The unsteered control; None where none was trained."""
    heal: HealLog | None = None
    comparisons: tuple[Comparison, ...] = ()
    """Steered, healed and control against the base, healed against steered and against control,
    paired."""
    curve: Curve | None = None
    """Coherence over doses, where the walk's first dose was found on it."""
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
    def beyond_control(self) -> Comparison | None:
        """Healed less unsteered control; None where no control was read."""
        return {(item.a, item.b): item for item in self.comparisons}.get(("control", "healed"))

    @property
    def over_control(self) -> Reading | None:
        """The trait of that."""
        return self.beyond_control.gain if self.beyond_control else None

    @property
    def kl_spent(self) -> float:
        """The KL budget used: the rounds' sum or the healed student's own KL to the base.

        The larger of the two: divergences do not add up, and a student can be farther from the base
        than its steps are from each other. NaN where neither is known.
        """
        direct = self.healed.kl.value if self.healed else math.nan
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
    halved: int = 0
    """Rows of the smallest batch, or positions of the smallest chunk of logits, that was tried
    after memory ran out; 0 where it never did."""
    memory: int = 0
    """Most bytes that were held when it was first made, weights included, on the accelerator where
    there is one; 0 where that is unknown."""
    made_again: str = ""
    """Why it was made although one of the same inputs was on disk."""


class RunRecord(Record):
    """The whole run, readable at any moment."""

    version: int = VERSION
    status: Literal["running", "finished", "interrupted", "failed"]
    outcome: str = ""
    """Why the loop ended."""
    name: str
    command: str
    """The line that made it; it stands early, so that a cut file still tells it."""
    config: Annotated[RunConfig | dict[str, Any], Field(union_mode="left_to_right")]
    """Its settings; as they stand on disk where another version wrote some that are not read."""
    environment: dict[str, str]
    notes: tuple[str, ...] = ()
    """What the reader must know, such as a template without a system role."""
    persona: Annotated[Persona | dict[str, Any], Field(union_mode="left_to_right")]
    """Its persona, or the same."""
    base: Summary | None = None
    instrument: str = ""
    """What read the vignettes; empty in a record that does not say."""
    prompted: Readings | None = None
    """The base under the persona's system prompt, by what its answers and vignettes say of the
    trait; None where it was not read."""
    sight: Sight | None = None
    """Which readings of coherence see; None where no doses were read."""
    judge: Admission | None = None
    """Who judged the free answers once the loop had ended; None where nobody did."""
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

    @field_validator("version")
    @classmethod
    def _as_of_this_version(cls, _: int) -> int:
        """What is read of an older version is held, and written again, as one of this."""
        return VERSION

    @field_validator("config", mode="before")
    @classmethod
    def _settings_that_are_read(cls, config: object) -> object:
        """Leaves out what older records hold and nothing reads, so that such a run goes on."""
        if not isinstance(config, dict):
            return config
        config = dict(config)
        for group, name in UNREAD_SETTINGS:
            if isinstance(config.get(group), dict):
                config[group] = {key: v for key, v in config[group].items() if key != name}
        return config

    def settings(self, source: object) -> RunConfig:
        """The run's settings; `source` is what a message calls the run.

        Raises:
            UserError: another version wrote some that are not read.
        """
        return validated(RunConfig, self.config, source=str(source))

    def whose(self, source: object) -> Persona:
        """The run's persona; argument and errors as for `settings`."""
        return validated(Persona, self.persona, source=str(source))

    def unread(self) -> list[str]:
        """A sentence each for settings and a persona that this version cannot read."""
        said = []
        for what, kind, value in (
            ("settings", RunConfig, self.config),
            ("persona", Persona, self.persona),
        ):
            try:
                validated(kind, value, source=f"The run's {what}, as another version wrote it")
            except UserError as error:
                said.append(f"{error}. It is shown as it stands.")
        return said
