"""`steerheal doctor`: what a model and this machine are to a run, before a long one."""

from collections.abc import Callable
from typing import Annotated

from steerheal.bounds import Place
from steerheal.commands.command import POSITIONAL, Command
from steerheal.config import ModelSettings
from steerheal.console import Console
from steerheal.personas import find


class DoctorCommand(Command):
    """Examines a model here: template, tokenizer, memory, instruments, and the time of a run."""

    persona: Annotated[Place, POSITIONAL] = "love"
    """Whose prompts the presets are counted with, and whose target the instruments must see."""
    model: ModelSettings = ModelSettings()

    def check(self) -> None:
        """Refuses a persona or a template that is not there."""
        find(self.persona)
        self.model.template_text()

    def do(self, console: Console, works: Callable[[], None]) -> None:
        """Loads the model, says what it is, and measures its pace."""
        from steerheal.pipeline.doctor import examine

        works()
        examine(self.model, find(self.persona), console)
