"""What a command is: options read off a line, what is refused at once, and what is done.

A command's module is imported for its help alone, so that it imports nothing at its head that
takes long (torch, transformers, scipy, matplotlib); `do` imports that, once the options are judged.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from steerheal.bounds import CountOrNone, Place, Seed, TokensOrNone
from steerheal.commands.helping import page
from steerheal.config import (
    Conditions,
    Date,
    Instrument,
    MeasureSettings,
    ModelSettings,
    TemplateVariables,
    merge,
    problems,
)
from steerheal.console import Console
from steerheal.errors import UserError
from steerheal.line import As, Given, flag_of, read

POSITIONAL = As(positional=True)


class Command(BaseModel):
    """Options of one command, and the command itself."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @classmethod
    def word(cls) -> str:
        """What it is called by: its module's name."""
        return cls.__module__.rpartition(".")[2]

    @classmethod
    def of(cls, argv: Sequence[str]) -> Self:
        """The options that a line gives.

        Raises:
            UserError: an unknown option, a missing or wrong value.
        """
        return cls.judged(read(cls, argv))

    @classmethod
    def judged(cls, given: Given, under: dict[str, Any] | None = None) -> Self:
        """A line's words as options, on top of the settings in `under`.

        Raises:
            UserError: a missing or wrong value.
        """
        values = given.values if under is None else merge(under, given.values)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            found = problems(cls, error, lambda path: flag_of(cls, path))
            raise UserError("; ".join(found)) from error

    @classmethod
    def help(cls, argv: Sequence[str]) -> str:
        """The help that a line asks for."""
        return page(cls.word(), cls, argv, None)

    def check(self) -> None:
        """Refuses all that needs no model, so that it is told in a second instead of minutes.

        Raises:
            UserError: what is wrong, and what to do.
        """

    @abstractmethod
    def do(self, console: Console, works: Callable[[], None]) -> None:
        """The command: imports what computes, calls `works`, and begins.

        Before `works` a signal ends the process at once, since an import that is interrupted
        leaves half a library behind; after it, what is open is closed.
        """


class ModelCommand(Command):
    """What every command that loads a model asks for."""

    model: Place = ""
    """Base model: empty for the embedded one, a hub id, a local folder or a GGUF file."""
    template: Place = ""
    """Jinja file with a chat template, in place of the model's own."""
    template_vars: TemplateVariables = {}
    """Variables of the chat template, as NAME=VALUE or one JSON object."""
    date: Date = ""
    """Date, or date and time, that a chat template prints, such as 2026-03-14; empty is now."""

    def asked_model(self) -> ModelSettings:
        """The options as settings of a model."""
        own = self.model_dump(include={"template", "template_vars", "date"})
        return ModelSettings(name=self.model, **own)


class ReadCommand(ModelCommand):
    """What every command that reads a model's vignettes and answers asks for."""

    instrument: Instrument = "auto"
    """How the vignettes are read."""
    protocol: Place = ""
    """JSON file with forced_choice's wording; empty for the bundled one."""
    vignettes: Place = "everyday"
    """Bundled set (everyday, ai), a JSONL file in tinymfv's fields, or wassname/tiny-mfv:SET."""
    per_foundation: CountOrNone = 0
    """Vignettes per foundation, a stratified subset; 0 is all of them."""
    conditions: Conditions = ("other",)
    """Who acts in the vignettes: someone else, or the reader."""
    think: TokensOrNone = 128
    """forced_choice: tokens of thinking before the answer; 0 is none."""
    orders: Literal["two", "cyclic"] = "two"
    """forced_choice: the options forwards and backwards, or every option once at every position."""
    seed: Seed = 0
    """Seed of the free answers."""

    def measure(self) -> MeasureSettings:
        """The options as settings of an evaluation."""
        named = ReadCommand.model_fields.keys() & MeasureSettings.model_fields.keys()
        return MeasureSettings.model_validate(self.model_dump(include=set(named)))
