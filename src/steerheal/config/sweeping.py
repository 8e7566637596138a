"""A sweep's file: which runs it stands for, and their settings."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from steerheal.bounds import Place, Seed, folder_name
from steerheal.config.base import Settings
from steerheal.config.run import PRESETS, RunConfig, merge
from steerheal.config.validation import read_toml, validated
from steerheal.errors import UserError

MOST_RUNS = 2_000
OWN = ("persona", "seed")
"""Settings of a run that a sweep has lists of its own for."""


class SweepFile(Settings):
    """What the file holds; a run for every persona, seed, entry of `run` and point of the grid."""

    preset: Literal["quick", "standard", "full"] = "standard"
    """How much of everything."""
    personas: Annotated[tuple[Place, ...], Field(min_length=1, max_length=MOST_RUNS)] = (
        RunConfig().persona,
    )
    """Built-in personas, or TOML files."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=MOST_RUNS)] = (0,)
    """Seeds of every setting."""
    settings: dict[str, Any] = {}
    """What all runs have on top of the preset, as in a run's own file."""
    grid: dict[str, Any] = {}
    """Settings with a list of values each; every combination is run."""
    run: Annotated[tuple[dict[str, Any], ...], Field(max_length=MOST_RUNS)] = ()
    """Settings that are run together, one [[run]] each, at every point of the grid."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    name: str
    """Its folder's; it says the settings in a digest, so that another file finds the same run."""
    config: RunConfig
    preset: str
    """The one that it starts from."""
    given: dict[str, Any]
    """What the file says of its settings, its preset's apart."""
    changes: dict[str, Any]
    """What sets it apart from other runs of the sweep, by dotted name."""


def points(file: Path, name: str) -> tuple[Point, ...]:
    """Every run that a file stands for, with its settings validated.

    Args:
        file: A TOML file in the form of `SweepFile`.
        name: The sweep's, with which its runs' names begin.

    Raises:
        UserError: an unreadable file, an unknown name, a wrong value, no or too many runs, two
            runs that are the same.
    """
    asked = validated(SweepFile, read_toml(file, SweepFile), source=str(file))
    axes = dict(_axes(asked.grid, str(file)))
    count = len(asked.personas) * len(asked.seeds) * max(1, len(asked.run))
    count *= math.prod(map(len, axes.values()))
    if count > MOST_RUNS:
        raise UserError(
            f"{file} stands for {count:,} runs; at most {MOST_RUNS:,} are made by one sweep. "
            "Shorten a list, or give a part of it a file of its own."
        )
    found: dict[str, Point] = {}
    for given, changes in _combined(asked, axes, str(file)):
        point = _point(asked, given, changes, file, name)
        if (twin := found.get(point.name)) is not None:
            raise UserError(
                f"{file}: two runs are the same: {said(twin.changes)} and {said(changes)}, persona "
                f"{point.config.persona}, seed {point.config.seed}. Leave one out."
            )
        found[point.name] = point
    return tuple(found.values())


def said(changes: dict[str, Any]) -> str:
    """What sets a run apart, in words."""
    return ", ".join(f"{name} {value}" for name, value in changes.items()) or "as the file says"


def _axes(grid: dict[str, Any], source: str, path: str = "") -> Iterator[tuple[str, list[Any]]]:
    """The grid's settings by dotted name, with their values."""
    for name, value in grid.items():
        full = f"{path}.{name}".lstrip(".")
        if isinstance(value, dict):
            yield from _axes(value, source, full)
        elif isinstance(value, list) and value:
            yield full, value
        else:
            raise UserError(
                f"{source}: grid.{full} needs a list of one or more values; given {value!r}."
            )


def _combined(
    asked: SweepFile, axes: dict[str, list[Any]], source: str
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Settings of every run, nested, and what sets it apart.

    Personas and seeds run fastest: workers that start together then share no stage that one of
    them would wait for.
    """
    for listed in asked.run or ({},):
        own = dict(_leaves(listed))
        for place, names in (("settings", asked.settings), ("grid", axes), ("run", own)):
            if taken := [name for name in OWN if name in names]:
                raise UserError(
                    f"{source}: {place}.{taken[0]} is not for there; a sweep has {taken[0]}s as a "
                    f"list at its head, {taken[0]}s = […]."
                )
        if twice := own.keys() & axes.keys():
            raise UserError(
                f"{source}: {', '.join(sorted(twice))} stands in grid and in a [[run]]. Leave it "
                "in one of them."
            )
        for values in product(*axes.values()):
            changes = own | dict(zip(axes, values, strict=True))
            for persona, seed in product(asked.personas, asked.seeds):
                nested = merge(asked.settings, {"persona": persona, "seed": seed})
                for name, value in changes.items():
                    nested = merge(nested, _nested(name, value))
                yield nested, changes


def _leaves(settings: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted name."""
    for name, value in settings.items():
        full = f"{path}.{name}".lstrip(".")
        if isinstance(value, dict):
            yield from _leaves(value, full)
        else:
            yield full, value


def _nested(name: str, value: object) -> dict[str, Any]:
    """One setting as a file nests it."""
    first, _, rest = name.partition(".")
    return {first: _nested(rest, value) if rest else value}


def _point(
    asked: SweepFile, given: dict[str, Any], changes: dict[str, Any], file: Path, name: str
) -> Point:
    source = f"{file}, run with {said(changes)}" if changes else str(file)
    config = validated(RunConfig, merge(PRESETS[asked.preset], given), source=source)
    plain = json.dumps(config.model_dump(mode="json", exclude_unset=True), sort_keys=True)
    digest = sha256(plain.encode()).hexdigest()[:8]
    called = f"{name}-{Path(config.persona).stem}-seed-{config.seed}-{digest}"
    try:
        return Point(folder_name(called), config, asked.preset, given, changes)
    except ValueError as error:
        raise UserError(f"{called!r} {error}. Give a shorter or plainer --name.") from error
