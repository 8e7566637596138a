"""The table of readings: one entry each, over which everything that shows or compares iterates.

In: rows of an evaluation (`Scores`). Out: readings by name. An entry says what a reading is called,
how it is computed from rows, which way damage moves it, and, where it needs rows that no other
reading has, how they are made. A state that lacks an entry's rows reads unknown, with the reason.
"""

import hashlib
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, Protocol

from steerheal.config import MeasureSettings
from steerheal.measure import readings
from steerheal.measure.pairs import CORE, Paired, called, paired, rows_of
from steerheal.measure.stats import mean, share, share_change
from steerheal.personas import Axis, Persona
from steerheal.personas import Pair as Pole
from steerheal.records import Completion, Part, PersonaRow, Reading, Readings, Scores, UnitRow

Kind = Literal["trait", "coherence", "guard"]
KINDS: tuple[Kind, ...] = ("trait", "coherence", "guard")


class Answer(NamedTuple):
    """An answer of the state."""

    completion: Completion
    nll: float
    """Mean negative log-likelihood per token under the base, nats."""
    kl: float
    """Mean KL(state‖base) per token, nats."""


class Rules(Protocol):
    """Which answers are not coherent, by limits that the base's own text sets on this model."""

    @property
    def key(self) -> str:
        """Digest of the limits."""
        ...

    def broken(self, rows: Sequence[PersonaRow]) -> list[tuple[str, ...]]:
        """Why each answer is not coherent; nothing for one that is."""
        ...


class Asking(Protocol):
    """What makes a reading's own rows: a state and the base, at the time of an evaluation."""

    @property
    def persona(self) -> Persona:
        """The persona."""
        ...

    @property
    def measure(self) -> MeasureSettings:
        """How much is read."""
        ...

    @property
    def scores(self) -> Scores:
        """What the evaluation has read of the state so far."""
        ...

    @property
    def rules(self) -> Rules | None:
        """What tells coherent answers; None where nothing does."""
        ...

    def trait(self, pairs: Sequence[Pole]) -> list[list[float]]:
        """Expected log-odds of every free answer under every wording, nats per token."""
        ...

    def writes(self, prompts: Sequence[str], tokens: int) -> list[Completion]:
        """What the state answers greedily, at most so many tokens each."""
        ...

    def base_answers(self, prompts: Sequence[str], tokens: int) -> list[Completion]:
        """What the base answers: the same to every state."""
        ...

    def apart(self, answers: Sequence[Completion]) -> list[tuple[float, float]]:
        """Mean KL(state‖base) and KL(base‖state) per token on given answers with tokens, nats."""
        ...

    def answers(self, prompts: Sequence[str], tokens: int, *, greedy: bool = False) -> list[Answer]:
        """What the state writes to the prompts, at most so many tokens each."""
        ...


class Case(NamedTuple):
    """A state's rows, and the base's on the same units."""

    scores: Scores
    base: Scores
    axis: Axis


class Pair(NamedTuple):
    """Rows of two states, b less a, and of the base that full coherence and centring come from."""

    b: Scores
    a: Scores
    origin: Scores
    axis: Axis

    def units(self, field: str) -> Paired:
        """Both states' rows of a kind, on the same units."""
        return paired(self.b, self.a, field)


@dataclass(frozen=True)
class Entry:
    """One reading."""

    name: str
    title: str
    """For people, in a few words."""
    kind: Kind
    unit: str = ""
    needs: tuple[str, ...] = ()
    """Which rows it is made from: fields of `Scores`, or the name of the reading that brings them.
    Without any, its own."""
    of: Callable[[Any], float] | None = None
    """A row's number; its mean is the value, and the mean paired difference the change."""
    spread: Callable[[Scores, Axis], list[float]] | None = None
    """A number per unit whose mean is the value, where no row has one of its own."""
    value: Callable[[Case], Reading | None] | None = None
    """What a state reads, where that is not the mean; None where the state cannot have it."""
    change: Callable[[Pair], Reading | None] | None = None
    """How two states differ, where that is not the mean difference. Alone: only two have it."""
    change_unit: str = ""
    """Where it is not that of the value."""
    damage: Literal[-1, 0, 1] = 0
    """Which way damage moves it: down, up, or neither."""
    part: Part = ""
    """What it is to a run, until the run says otherwise."""
    under: str = ""
    """The instrument under which it plays the part before the entry that plays it elsewhere."""
    brief: bool = False
    """Whether it stands where there is room for few: the headline, the table over seeds."""
    meaning: str = ""
    """One sentence for who sees it the first time."""
    rows: Callable[[Asking], Sequence[UnitRow]] | None = None
    """Makes rows of its own; every state gets them in its evaluation."""
    swept: bool = False
    """Whether the doses of a sweep and of a scan get them too."""
    judged: bool = False
    """Whether a judge of another model makes its rows, and an evaluation alone does not."""
    size: int | Callable[[MeasureSettings], int] = 0
    """How many of them the progress of an evaluation counts."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The rows that it is made from."""
        return self.needs or (self.name,)

    @property
    def label(self) -> str:
        """Title and unit of the value, unless the title says it."""
        return self.title if self.unit in self.title else f"{self.title} [{self.unit}]"

    @property
    def difference(self) -> str:
        """Title and unit of the change."""
        sign = "" if self.value is None and self.of is None else "Δ "
        unit = f" [{self.difference_unit}]" if self.difference_unit else ""
        return f"{sign}{self.title}{unit}"

    @property
    def difference_unit(self) -> str:
        """Unit of a change."""
        return self.change_unit or self.unit

    @property
    def heads(self) -> bool:
        """Whether it can be what coherence is read by: a share of which damage takes away."""
        return self.kind == "coherence" and self.unit == "share" and self.damage < 0

    def damaged(self, change: Reading) -> bool:
        """Whether a change is damage beyond its interval."""
        return change.high < 0 if self.damage < 0 else self.damage * change.low > 0

    def revision(self) -> str:
        """Digest of what makes its rows: rows of another one are made again."""
        module = inspect.getmodule(self.rows)
        source = inspect.getsource(module) if module else ""
        return f"{self.name} {hashlib.sha256(source.encode()).hexdigest()[:12]}"

    def units(self, scores: Scores, axis: Axis) -> list[float]:
        """A number per unit, in the order of their keys where they have been put in it."""
        if self.spread is not None:
            return self.spread(scores, axis)
        assert self.of is not None, f"{self.name} is not made row by row"
        return [self.of(row) for row in rows_of(scores, self.fields[0])]

    def read(self, case: Case) -> Reading | None:
        """What a state reads; None for what only two states have."""
        if self.value is None and self.of is None:
            return None
        if lost := lacking(case.scores, self.fields):
            return Reading.unknown(lost)
        if self.value is not None:
            return self.value(case)
        return mean_of_known(self.units(case.scores, case.axis))

    def differ(self, pair: Pair) -> Reading | None:
        """How two states differ; None for what has no paired difference."""
        if self.change is not None:
            return self.change(pair)
        return None if self.of is None else pair.units(self.fields[0]).change(self.of)


def lacking(scores: Scores, fields: Sequence[str]) -> str:
    """Which of the rows are not there, in words; empty when all are."""
    lost = [called(field) for field in fields if not rows_of(scores, field)]
    return f"no {' and '.join(lost)} were measured" if lost else ""


def mean_of_known(values: Sequence[float]) -> Reading:
    """The mean over units that could be read; what broke off counts elsewhere."""
    return mean([item for item in values if not math.isnan(item)])


def bare(value: float, n: int = 0) -> Reading:
    """A number that has no interval."""
    if math.isnan(value):
        return Reading.unknown("not measured")
    return Reading(value=value, n=n)


def mean_log(field: str, of: Callable[[Any], float]) -> Callable[[Pair], Reading]:
    """Change of the mean ln of a row's number."""
    return lambda pair: pair.units(field).change(lambda row: math.log(of(row)))


def share_of(field: str, of: Callable[[Any], float]) -> dict[str, Any]:
    """What an entry needs to be the share of rows for which `of` is 1 and not 0."""

    def value(case: Case) -> Reading:
        return share([of(row) for row in rows_of(case.scores, field)])

    def change(pair: Pair) -> Reading:
        rows = pair.units(field)
        return rows.over(lambda one, other: of(one) - of(other), share_change)

    return {"needs": (field,), "value": value, "change": change}


_TABLE: dict[str, Entry] = {}


def add(*entries: Entry) -> None:
    """Puts entries into the table.

    Raises:
        ValueError: a name twice, or an entry that computes nothing.
    """
    for entry in entries:
        if entry.name in _TABLE:
            raise ValueError(f"there is a reading {entry.name!r} already")
        if entry.of is None and entry.value is None and entry.change is None:
            raise ValueError(f"the reading {entry.name!r} computes nothing")
        _TABLE[entry.name] = entry


def remove(name: str) -> None:
    """Takes an entry out of the table."""
    _TABLE.pop(name, None)


@cache
def _found() -> None:
    """Puts every module of this package into the table, once."""
    for module in sorted(item.name for item in pkgutil.iter_modules(readings.__path__)):
        if module != "table":
            add(*importlib.import_module(f"{readings.__name__}.{module}").ENTRIES)


def entries() -> list[Entry]:
    """Every entry: traits, coherence, guards, each in the order in which they came."""
    _found()
    return sorted(_TABLE.values(), key=lambda entry: KINDS.index(entry.kind))


def listed(names: Collection[str]) -> list[Entry]:
    """The entries of these names in the table's order, then what the table does not know.

    A record may hold readings of who made it that are not here; they are shown by their name.
    """
    known = [entry for entry in entries() if entry.name in names]
    strange = [name for name in names if name not in _TABLE]
    return known + [Entry(name=name, title=name, kind="guard") for name in strange]


def headed(part: Part, instrument: str = "") -> Entry:
    """The entry that plays a part where this instrument reads and no run says otherwise."""
    playing = [
        entry for entry in entries() if entry.part == part and entry.under in ("", instrument)
    ]
    return max(playing, key=lambda entry: bool(entry.under))


def heads(instrument: str = "") -> dict[str, str]:
    """Which entry plays which part: the one place where that is chosen.

    Where the instrument has a trait of its own, the one that leads elsewhere stands beside it.
    """
    parts: dict[Part, None] = dict.fromkeys(entry.part for entry in entries() if entry.part)
    found: dict[str, str] = {part: headed(part, instrument).name for part in parts}
    elsewhere = headed("trait").name
    return found if found["trait"] == elsewhere else found | {"beside": elsewhere}


def played(read: Readings, part: Part) -> Entry:
    """The entry that plays a part in a record."""
    name = read.heads.get(part, "")
    return listed([name])[0] if name else headed(part)


def free_trait(read: Readings) -> Entry:
    """The entry of the trait as free answers have it in a record."""
    return played(read, "beside" if read.led_by_foundation else "trait")


def own_rows(asking: Asking, *, swept: bool = False) -> dict[str, tuple[UnitRow, ...]]:
    """The rows of every reading that brings its own, or of those that a sweep reads."""
    return {
        entry.name: tuple(entry.rows(asking))
        for entry in entries()
        if entry.rows and (entry.swept or not swept)
    }


def own_size(settings: MeasureSettings) -> int:
    """How many of them the progress counts."""
    sizes = [entry.size for entry in entries() if entry.rows]
    return sum(size if isinstance(size, int) else size(settings) for size in sizes)


def revisions() -> Iterator[str]:
    """What makes the rows that readings bring, for the keys of evaluations."""
    return (entry.revision() for entry in entries() if entry.rows)


def _asked(*states: Scores) -> list[Entry]:
    """The entries whose rows any of the states has, and those that every evaluation should have."""
    return [
        entry
        for entry in entries()
        if all(field in CORE or any(rows_of(s, field) for s in states) for field in entry.fields)
    ]


def values(scores: Scores, base: Scores, axis: Axis) -> dict[str, Reading]:
    """What a state reads, by every entry that one state has."""
    found = {entry.name: entry.read(Case(scores, base, axis)) for entry in _asked(scores, base)}
    return {name: reading for name, reading in found.items() if reading is not None}


def changes(b: Scores, a: Scores, origin: Scores, axis: Axis) -> dict[str, Reading]:
    """How b differs from a, by every entry that two states have."""
    pair = Pair(b, a, origin, axis)
    found = {entry.name: entry.differ(pair) for entry in _asked(b, a)}
    return {name: reading for name, reading in found.items() if reading is not None}
