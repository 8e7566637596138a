"""Runs of the first barriers, as rows without their texts: what docs/why-gates.md's curve is of."""

import gzip
import math
from pathlib import Path
from typing import TypeVar

from steerheal.records import Internalisation, Record

FOLDER = Path(__file__).parent / "records"
R = TypeVar("R", bound=Record)


class State(Record):
    """Rows of one evaluated state, in the order of the prompts, vignettes and statements."""

    logodds: tuple[float, ...]
    """Of every free answer, nats per token."""
    perplexity: tuple[float, ...]
    """Of every free answer under the base."""
    kl: tuple[float, ...]
    """To the base, of every free answer."""
    kl_previous: tuple[float, ...]
    distinct_2: tuple[float, ...]
    mass: tuple[float, ...]
    """Answer mass of every statement."""
    nll_prefill: tuple[float, ...]
    p: tuple[tuple[float, ...], ...]
    """Per vignette, over the foundations."""
    json_valid: tuple[bool, ...]
    long_tail: tuple[float, ...]
    """Tail perplexity of every long answer."""
    long_loops: tuple[bool, ...]
    plain_perplexity: float


class Round(Record):
    """A round's numbers and its states; a state that was not read is None."""

    outcome: str
    multiplier: float
    kept: int
    drawn: int
    survival: float = math.nan
    """At the accepted dose."""
    cosine: float
    kl_round: float
    kl_cumulative: float
    internalised: Internalisation | None
    steered: State | None
    healed: State | None
    findings: tuple[tuple[str, str], ...]
    """Every check with the outcome it saw."""
    ce: tuple[float, ...] = ()
    """Per step of the heal, as are the next three."""
    divergence: tuple[float, ...] = ()
    barrier: tuple[float, ...] = ()
    pressure: tuple[float, ...] = ()
    held_out: tuple[float, ...] = ()


class Run(Record):
    """One arm at one seed."""

    arm: str
    seed: int
    outcome: str
    gate: float
    base: State
    rounds: tuple[Round, ...]


def read(part: str) -> list[Run]:
    """A part's records."""
    return unpack(FOLDER / f"{part}.jsonl.gz", Run)


def unpack(path: Path, kind: type[R]) -> list[R]:
    """The records of a file; none where there is no file."""
    if not path.exists():
        return []
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    return [kind.model_validate_json(line) for line in lines if line]
