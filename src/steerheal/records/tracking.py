"""How far a run's metrics have been passed on to a tracker."""

from steerheal.records.base import Record

TRACK_VERSION = 1
TRACK = "track"
"""Folder of a run in which such records lie, one for each tracker, named after it."""


class TrackRecord(Record):
    """What a tracker has of a run; a run that goes on continues from here."""

    version: int = TRACK_VERSION
    id: str
    """The run's name at the tracker, by which it finds what it has."""
    opened: bool = False
    """Whether it took the run's settings."""
    rounds: int = 0
    """Rounds that were passed on."""
    steps: int = 0
    """Where the tracker's axis stands: optimiser steps and ends of rounds, over all rounds."""
    ended: bool = False
    """Whether the reading on the test prompts was passed on."""
    missed: int = 0
    """Times that the tracker took nothing, for which a line would stand there."""
