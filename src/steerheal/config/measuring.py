"""What an evaluation reads, and what the sweep before the first harvest does."""

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator

from steerheal.bounds import Count, CountOrNone, Place, Tokens, TokensOrNone
from steerheal.config.base import Doses, Settings
from steerheal.line import As
from steerheal.prompts import control_held_out, lines
from steerheal.tables import INSTRUMENTS

Conditions = Annotated[tuple[Literal["other", "self"], ...], Field(min_length=1, max_length=2)]
Instrument = Annotated[str, INSTRUMENTS]


class MeasureSettings(Settings):
    """What an evaluation reads."""

    instrument: Annotated[Instrument, As(also=("--instrument",))] = "auto"
    """How the vignettes are read."""
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
    statements: Annotated[Count, Field(ge=2)] = 32
    """Statements that the canary is read on."""
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
    held_out_pairs: CountOrNone = 8
    """Held-out wordings of the persona's poles that the free answers are read under; 0 is none."""
    control_prompts: CountOrNone = 32
    """Unrelated prompts on the base's answers to which the spill is read; 0 is none."""
    control_tokens: Tokens = 48
    """Longest of those answers, in tokens."""
    tasks: CountOrNone = 64
    """Short instructions that are answered greedily and checked by code; 0 is none."""
    task_tokens: Tokens = 32
    """Longest of those answers, in tokens."""

    def of_the_trait(self) -> Self:
        """The same without the guards that answer prompts of their own, which cost as much again.

        Spill stays: what training alone does off the trait belongs beside what the heal does there.
        """
        without = ("long_prompts", "json_prompts", "tasks")
        return self.model_copy(update=dict.fromkeys(without, 0))

    @field_validator("statements", "long_prompts", "json_prompts", "control_prompts", "tasks")
    @classmethod
    def _as_many_as_bundled(cls, count: int, info: ValidationInfo) -> int:
        most = {
            "statements": lambda: lines("statements"),
            "long_prompts": lambda: lines("open"),
            "json_prompts": lambda: lines("json"),
            "control_prompts": control_held_out,
            "tasks": lambda: lines("tasks", "jsonl"),
        }[str(info.field_name)]()
        if count > len(most):
            raise ValueError(f"at most {len(most)} are bundled")
        return count


class CheckSettings(Settings):
    """The sweep of doses that is read before the first harvest."""

    doses: Doses = (0.5, 1.0, 2.0)
    """Doses read, as multiples of the one the walk starts at; none switches the sweep off. The
    largest should plainly break text: what does not fall there sees no damage."""
    control: bool = True
    """Also read a random vector whose KL equals that of the largest dose."""
    prompts: Annotated[Count, Field(ge=2)] = 16
    """The persona's evaluation prompts that every dose answers."""
    per_foundation: CountOrNone = 8
    """Vignettes per foundation, of those that an evaluation reads; 0 is all of these."""
    tokens: Tokens = 40
    """Longest free answer, in tokens."""
    base_texts: Count = 8
    """Answers of the base that the control's KL is matched on and even shares are read at."""
