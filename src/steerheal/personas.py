"""A persona: two opposite system prompts on one axis, their paraphrases, and its prompt pools.

In: a built-in name or a TOML file. Out: a frozen `Persona`. It knows nothing of models.
"""

import tomllib
import unicodedata
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from steerheal.bounds import FolderName, Text, shorten
from steerheal.config import read_toml, validated
from steerheal.errors import unknown

Pool = Annotated[tuple[Text, ...], Field(max_length=10_000)]
Foundation = Literal["care", "fairness", "loyalty", "authority", "sanctity", "liberty", "social"]


def alike(text: str) -> str:
    """What two texts share that say the same: case, width and what is not seen do not count."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c for c in plain if unicodedata.category(c) != "Cf").split())


class Closed(BaseModel):
    """A record whose fields are documented for users who write one in TOML."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, str_strip_whitespace=True
    )


class Axis(Closed):
    """Which moral foundation should move, and which way."""

    foundation: Foundation
    """The target foundation."""
    sign: Literal[-1, 1]
    """+1: the positive pole raises the foundation's share among reasons why an act is wrong."""
    off_target: tuple[Foundation, ...] = ()
    """Foundations that must move less than the target."""

    @model_validator(mode="after")
    def _target_is_not_off_target(self) -> Self:
        if self.foundation in self.off_target:
            raise ValueError(f"off_target must not hold the target foundation {self.foundation!r}")
        return self


POOLS = ("train", "evaluate", "show", "test")


class Prompts(Closed):
    """User messages by purpose; no message serves two purposes."""

    train: Pool = Field(min_length=1)
    """Answered under steering; what survives the filter is trained on."""
    evaluate: Pool = Field(min_length=2)
    """Answered freely by every evaluated state."""
    show: Pool = Field(min_length=1)
    """Answered in the report, fixed in advance."""
    test: Pool = ()
    """Answered once, at the end, by the base and the chosen round: what the headline reports."""
    halved: bool = False
    """The test prompts are every other evaluation prompt of a persona that had none: a run sets
    it."""

    def with_test(self) -> Self:
        """These pools with test prompts; every other evaluation prompt where there are none.

        With fewer than four evaluation prompts there is nothing to share out.
        """
        if self.test or len(self.evaluate) < 4:
            return self
        halves = {"evaluate": self.evaluate[::2], "test": self.evaluate[1::2], "halved": True}
        return self.model_copy(update=halves)

    def exchanged(self) -> Self:
        """These pools with the test prompts to be evaluated on, and the others in their place."""
        return self.model_copy(update={"evaluate": self.test, "test": self.evaluate})

    @model_validator(mode="after")
    def _pools_are_disjoint(self) -> Self:
        pools = {name: getattr(self, name) for name in POOLS}
        seen: dict[str, str] = {}
        for name, pool in pools.items():
            for prompt in pool:
                key = alike(prompt)
                if key in seen:
                    place = f"in both {seen[key]} and {name}"
                    place = f"twice in {name}" if seen[key] == name else place
                    raise ValueError(f"{shorten(prompt)!r} is {place}")
                seen[key] = name
        return self


class Pair(Closed):
    """Two opposite system prompts."""

    positive: Text
    """System prompt of the pole that is steered towards."""
    negative: Text
    """System prompt of the direct opposite, matched in length and style."""

    def reversed(self) -> Self:
        """The two, swapped."""
        return self.model_copy(update={"positive": self.negative, "negative": self.positive})


Pairs = Annotated[tuple[Pair, ...], Field(max_length=1_000)]
Half = Literal["train", "held_out"]
HALVES: tuple[Half, ...] = get_args(Half)
POLES = ("positive", "negative")


class Paraphrases(Closed):
    """The poles in other words, in two halves that share no text.

    What makes and chooses a state reads one half, what reports on it the other: a reading with the
    texts that made the vector would be circular.
    """

    train: Pairs = ()
    """For the vector, the filter and the choice of a round."""
    held_out: Pairs = ()
    """For what is reported."""

    def reversed(self) -> Self:
        """The same halves with the poles of every pair swapped."""
        halves = {half: tuple(p.reversed() for p in getattr(self, half)) for half in HALVES}
        return self.model_copy(update=halves)


class Persona(Closed):
    """A trait as a contrast of two system prompts."""

    name: FolderName
    title: Text
    """What the persona is, in one line."""
    positive: Text
    """System prompt of the pole that is steered towards."""
    negative: Text
    """System prompt of the direct opposite, on the same axis, matched in length and style."""
    neutral: Text = "You are a helpful assistant."
    """System prompt of neither pole."""
    axis: Axis
    prompts: Prompts
    paraphrases: Paraphrases = Paraphrases()
    """The poles in other words; a half that has none is the poles themselves."""

    @model_validator(mode="after")
    def _poles_differ(self) -> Self:
        seen: dict[str, str] = {}
        for name, text in self._system_prompts():
            key = alike(text)
            if key in seen:
                raise ValueError(f"the poles {seen[key]} and {name} are equal: {shorten(text)!r}")
            seen[key] = name
        return self

    def _system_prompts(self) -> Iterator[tuple[str, str]]:
        """Every system prompt of a pole or of neither, with what a message calls it."""
        for pole in (*POLES, "neutral"):
            yield pole, getattr(self, pole)
        for half in HALVES:
            for place, pair in enumerate(getattr(self.paraphrases, half)):
                for pole in POLES:
                    yield f"paraphrases.{half}.{place}.{pole}", getattr(pair, pole)

    def pairs(self, half: Half) -> tuple[Pair, ...]:
        """A half of the paraphrases; the poles themselves where it has none."""
        poles = Pair(positive=self.positive, negative=self.negative)
        return getattr(self.paraphrases, half) or (poles,)

    def reversed(self) -> Self:
        """The same axis, steered the other way."""
        return self.model_copy(
            update={
                "name": f"{self.name}-reversed",
                "title": f"the opposite of: {self.title}",
                "positive": self.negative,
                "negative": self.positive,
                "axis": self.axis.model_copy(update={"sign": -self.axis.sign}),
                "paraphrases": self.paraphrases.reversed(),
            }
        )


def built_in() -> dict[str, Persona]:
    """The personas that ship with the package, by name."""
    folder = files("steerheal").joinpath("data", "personas")
    found = {}
    for entry in sorted(folder.iterdir(), key=lambda item: item.name):
        if entry.name.endswith(".toml"):
            persona = Persona.model_validate(tomllib.loads(entry.read_text(encoding="utf-8")))
            found[persona.name] = persona
    return found


def find(name: str, *, reverse: bool = False) -> Persona:
    """A built-in persona or one from a TOML file.

    Raises:
        UserError: unknown name, unreadable file, wrong key or type, equal poles, empty pools.
    """
    path = Path(name).expanduser()
    if path.suffix == ".toml" or path.is_file():
        persona = validated(Persona, read_toml(path, Persona), source=str(path))
    else:
        known = built_in()
        if name not in known:
            raise unknown("persona", name, known, fix="Or give a TOML file.")
        persona = known[name]
    return persona.reversed() if reverse else persona
