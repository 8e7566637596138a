"""What an engine is: it fills rows with tokens, whatever does the computing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from steerheal.config import PushSettings, RunConfig, SamplingSettings
from steerheal.models.model import ChatModel
from steerheal.models.push import Row
from steerheal.models.rows import Line
from steerheal.tables import ENGINES


def unwatched(_: Sequence[Row]) -> None:
    """Nobody looks on."""


@dataclass(frozen=True)
class Order:
    """Rows to be written together."""

    lines: Sequence[Line]
    """What each row is asked, and in which state."""
    doses: Sequence[float]
    """Its state's dose, per row."""
    seeds: Sequence[int]
    settings: SamplingSettings
    push: PushSettings
    """How the dose runs along a completion."""
    keep_states: bool = False
    """Whether the state behind every token is kept as well."""
    keep_broken: bool = False
    """Whether a row at a dose whose logits are not finite ends there, instead of everything."""
    progress: Callable[[int], None] = lambda _: None
    """Told how many rows are finished since the last call."""
    watch: Callable[[Sequence[Row]], None] = unwatched
    """Given the rows that are still written after every token; may end some of them."""

    def row(self, index: int) -> Row:
        """A row with nothing written yet."""
        return Row(self.lines[index], self.doses[index], keep_states=self.keep_states)

    @property
    def longest(self) -> int:
        """Tokens that the longest row may come to."""
        return max(map(len, self.lines), default=0) + self.settings.tokens


def willing(_: object) -> None:
    """Refuses nothing."""


@dataclass(frozen=True)
class Engine:
    """A way to have rows written."""

    write: Callable[[ChatModel, Order], list[Row]]
    """The rows, in the order of the lines."""
    refuse: Callable[[RunConfig], None] = willing
    """Looks at a run's settings before anything is loaded; raises `UserError`."""
    refuse_model: Callable[[ChatModel], None] = willing
    """Looks at a run's model once it is loaded; raises `UserError`."""
    hooks: bool = True
    """Whether it writes every state there is, mixtures and vectors that depend on it included."""
    packages: tuple[str, ...] = ()
    """Whose versions a record must name beside the usual ones."""


def find(name: str) -> Engine:
    """The engine of that name; a bare function of a model and an order is one as well.

    Raises:
        UserError: no such engine.
    """
    found = ENGINES.find(name)
    return found if isinstance(found, Engine) else Engine(found)
