"""What a stage is: a function of inputs that say themselves what they are, and what it leaves.

The key is the digest of the inputs, then that of the code that makes the artifact of them. An
input counts by its own key (a state's, a vector's, a model's) or as the plain values that it holds;
a stage says where only a part of one counts.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, ParamSpec, Self, TypeVar

from steerheal.code import key_of, made_by
from steerheal.records import Record
from steerheal.store import read_record, write_record

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Artifact(Generic[T]):
    """How a stage's result lies in its folder."""

    save: Callable[[Path, T], None]
    load: Callable[[Path], T]


def record(file: str, kind: type[R]) -> Artifact[R]:
    """A record in a file of its own."""
    return Artifact(
        lambda folder, value: write_record(folder / file, value),
        lambda folder: read_record(folder / file, kind),
    )


@dataclass(frozen=True)
class Stage(Generic[P, T]):
    """One step of a run, whatever its inputs."""

    name: str
    function: Callable[P, T]
    """What makes the artifact; who hears of its progress is no input."""
    artifact: Artifact[T]
    by: tuple[str, ...]
    """Modules that compute it, the function's own first; what these import counts as well."""
    counts: Mapping[str, Callable[[Any], object]] = field(default_factory=dict)
    """What of an input counts, by its name, where that is not all of it, or more."""

    @property
    def code(self) -> str:
        """Digest of the code that makes it."""
        return made_by(self.by)

    def called(self, role: str, artifact: Artifact[T]) -> Self:
        """The same stage for one of several roles, each with an artifact of its own."""
        return replace(self, name=f"{self.name}-{role}", artifact=artifact)

    def of(self, *args: P.args, **kwargs: P.kwargs) -> "Made[T]":
        """The stage of these inputs."""
        inputs = inspect.signature(self.function).bind(*args, **kwargs).arguments
        return Made(self, inputs)


@dataclass(frozen=True)
class Made(Generic[T]):
    """A stage with its inputs: one artifact, made already or not."""

    stage: Stage[..., T]
    inputs: Mapping[str, Any]

    @cached_property
    def key(self) -> str:
        """Digest of the inputs, and of the code that makes it of them."""
        stage = self.stage
        counted = {
            name: stage.counts[name](value) if name in stage.counts else value
            for name, value in self.inputs.items()
        }
        return f"{key_of(stage.name, counted)}-{stage.code}"

    def make(self, **hears: Any) -> T:
        """The artifact; `hears` is who hears how it goes."""
        return self.stage.function(**self.inputs, **hears)
