"""The model of a process's last job, for the next one with the same settings of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from steerheal.config import ModelSettings
from steerheal.errors import UserError
from steerheal.models.load import load
from steerheal.models.model import ChatModel


class Kept:
    """At most one model; who has it leaves it as it was found."""

    def __init__(self) -> None:
        self._settings: ModelSettings | None = None
        self._chat: ChatModel | None = None

    @contextmanager
    def lent(self) -> Iterator[Callable[[ModelSettings], ChatModel]]:
        """What gives the model that settings name; one that a bug may have changed is let go."""
        try:
            yield self._load
        except UserError:
            raise
        except Exception:
            self.forget()
            raise

    def forget(self) -> None:
        """Gives its memory back."""
        self._chat = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _load(self, settings: ModelSettings) -> ChatModel:
        if self._chat is None or settings != self._settings:
            self.forget()  # before there are two of them
            self._chat, self._settings = load(settings), settings
        return self._chat


kept = Kept()
