"""A sweep: its runs, what became of each, and their headlines."""

from typing import Any, Literal

from steerheal.records.base import Reading, Record

SWEEP_VERSION = 1


class SweptRun(Record):
    """One run of a sweep."""

    name: str
    """Its folder's name, beside the sweep's."""
    persona: str
    seed: int
    changes: dict[str, Any]
    """What sets it apart from other runs of the sweep, by the dotted name of the setting."""
    status: Literal["waiting", "finished", "failed"] = "waiting"
    error: str = ""
    """Why it failed; the whole of it."""
    round: int | None = None
    """The round that its headline is about, from 0; None where none was healed."""
    by: str = ""
    """What the trait is read by, with its unit."""
    trait: Reading = Reading.unknown("no round was healed")
    """Change from the base, where the headline reads it."""
    net: Reading = Reading.unknown("no unsteered control was read")
    """The same, less that of the unsteered control."""
    kl: Reading = Reading.unknown("no round was healed")
    """To the base, nats per token."""
    coherence: Reading = Reading.unknown("no round was healed")
    """Share of the base's, which the floor looks at."""
    made: int = 0
    """Stages that this run made."""
    shared: int = 0
    """Stages that it found made."""


class SweptMean(Record):
    """Settings that finished at two seeds or more: means over seeds, with t-intervals."""

    persona: str
    changes: dict[str, Any]
    seeds: int
    trait: Reading
    net: Reading
    kl: Reading
    coherence: Reading


class SweepRecord(Record):
    """A whole sweep, readable at any moment."""

    version: int = SWEEP_VERSION
    status: Literal["running", "finished", "interrupted"]
    """Finished: every run has finished or failed."""
    name: str
    command: str
    """The line that made it, and that goes on with it."""
    runs: tuple[SweptRun, ...] = ()
    """In the order of the file."""
    means: tuple[SweptMean, ...] = ()
