"""A forced-choice protocol as data: wording, option order, markers; ours, or a user's file.

In: nothing or a JSON file. Out: a `Protocol`, which writes the user turn for any order of labels.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self, cast

from pydantic import Field, ValidationInfo, field_validator, model_validator

from steerheal.bounds import read_text
from steerheal.config import validated
from steerheal.errors import UserError
from steerheal.measure.vignettes import COARSE
from steerheal.prompts import data
from steerheal.records import FOUNDATIONS, Record

MOST_BYTES = 1_000_000


class Protocol(Record):
    """How seven reasons are offered, and how the answer is forced."""

    name: str = Field(min_length=1)
    source: str
    """Where the wording comes from."""
    labels: tuple[str, ...]
    """The seven answers, in the order of the forward list."""
    coarse: dict[str, str]
    """The foundation that each label stands for, as vignette files name it."""
    glosses: dict[str, str]
    """What the list says after each label."""
    user_turn: str
    """The whole user turn; {vignette} and {schema} are filled in."""
    schema_forward: str
    """The list of options, one line each, in the order of the labels."""
    schema_reversed: str
    """The same with its option lines in reverse order."""
    think_open: str
    """What follows the generation prompt."""
    think_close: str
    """What ends the thinking; a tokenizer that has it as one token cannot emit it before."""
    nudge: str = Field(min_length=1)
    """The user turn that interrupts the thinking."""
    prefill: str = Field(min_length=1)
    """The forced opening of the answer, up to its value."""
    keep_last_think_token: bool = False
    """False leaves the last think token out of the context, so that one token is no thinking."""

    @field_validator("labels")
    @classmethod
    def _seven_distinct(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) != len(labels) or len(labels) != len(FOUNDATIONS):
            raise ValueError(f"needs {len(FOUNDATIONS)} distinct labels")
        return labels

    @field_validator("coarse", "glosses")
    @classmethod
    def _one_per_label(cls, texts: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        labels = info.data.get("labels", texts)
        if set(texts) != set(labels):
            raise ValueError(f"its keys must be the labels: {', '.join(labels)}")
        return texts

    @field_validator("coarse")
    @classmethod
    def _every_foundation_once(cls, coarse: dict[str, str]) -> dict[str, str]:
        if {COARSE.get(name) for name in coarse.values()} != set(FOUNDATIONS):
            names = ", ".join(dict.fromkeys(COARSE))
            raise ValueError(f"needs every foundation once; known names: {names}")
        return coarse

    @field_validator("user_turn")
    @classmethod
    def _fills_in(cls, text: str) -> str:
        try:
            filled = text.format(vignette="«v»", schema="«s»")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError("braces other than {vignette} and {schema} must be doubled") from error
        if filled.count("«v»") != 1 or filled.count("«s»") != 1:
            raise ValueError("must hold {vignette} and {schema} once each")
        return text

    @model_validator(mode="after")
    def _orders_are_one_list(self) -> Self:
        if self.schema_for(self.labels) != self.schema_forward:
            raise ValueError("schema_forward must list its options in the order of the labels")
        if self.schema_for(self.labels[::-1]) != self.schema_reversed:
            raise ValueError(
                "schema_reversed must be schema_forward with its option lines in reverse order, "
                "the last one ending in a comma like the others"
            )
        return self

    def words(self) -> tuple[str, ...]:
        """The label of every foundation, in canonical order."""
        meant = {COARSE[self.coarse[label]]: label for label in self.labels}
        return tuple(meant[name] for name in FOUNDATIONS)

    def schema_for(self, order: Sequence[str]) -> str:
        """The list of options with the labels in this order."""
        lines = self.schema_forward.split("\n")
        places = [self._place(label, lines) for label in self.labels]
        shown = [lines[self._place(label, lines)] for label in order]
        for place, line in zip(sorted(places), shown, strict=True):
            lines[place] = line
        return "\n".join(lines)

    def turn(self, vignette: str, order: Sequence[str]) -> str:
        """The user turn that shows a vignette and the options in this order."""
        return self.user_turn.format(vignette=vignette, schema=self.schema_for(order))

    def _place(self, label: str, lines: Sequence[str]) -> int:
        found = [i for i, line in enumerate(lines) if line.strip().startswith(f'"{label}"')]
        if len(found) != 1 or self.glosses[label] not in lines[found[0]]:
            raise ValueError(
                f'schema_forward needs one line that begins with "{label}" and holds its gloss'
            )
        return found[0]


def load(path: Path | None = None) -> Protocol:
    """The protocol in a JSON file; the bundled one when none is given.

    Raises:
        UserError: unreadable, not JSON, a missing, unknown or wrong field.
    """
    file = cast(Path, data().joinpath("protocol.json")) if path is None else path
    source = f"Protocol {path}" if path else "The bundled protocol"
    try:
        values = json.loads(read_text(file, what="protocol", most=MOST_BYTES))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source} is not JSON: {error}.") from error
    return validated(Protocol, values, source=source)
