"""The raw records behind docs/results.md: a run's rows without their texts, small enough to keep.

Usage: python lab/evidence/kept.py --runs DIR   (writes lab/evidence/records/PART.jsonl.gz)
"""

import argparse
import gzip
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from arms import PARTS, settings

from steerheal.records import Internalisation, Record, Scores
from steerheal.store import read_run, read_scores

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


def short(values: Iterable[float]) -> tuple[float, ...]:
    """Five significant digits."""
    return tuple(float(f"{value:.5g}") for value in values)


def state(scores: Scores) -> State:
    """A state's rows."""
    said = scores.persona
    return State(
        logodds=short(row.logodds for row in said),
        perplexity=short(row.perplexity for row in said),
        kl=short(row.kl_to_base for row in said),
        kl_previous=short(row.kl_to_previous for row in said),
        distinct_2=short(row.distinct_2 for row in said),
        mass=short(row.p_ans_any for row in scores.canary),
        nll_prefill=short(row.nll_prefill for row in scores.canary),
        p=tuple(short(row.p) for row in scores.vignettes),
        json_valid=tuple(row.valid for row in scores.json_replies),
        long_tail=short(row.tail_perplexity for row in scores.long),
        long_loops=tuple(row.loops for row in scores.long),
        plain_perplexity=scores.plain_perplexity,
    )


def whole(folder: Path, arm: str, gate: float | None, seed: int) -> Run:
    """A finished run."""
    record = read_run(folder)
    base = state(read_scores(folder, -1, "base"))
    if gate is not None:
        only = Round(
            outcome="gate", multiplier=float("nan"), kept=0, drawn=0, cosine=float("nan"),
            kl_round=float("nan"), kl_cumulative=float("nan"), internalised=None, steered=None,
            healed=state(read_scores(folder, 0, "healed")), findings=(),
        )  # fmt: skip
        return Run(arm=arm, seed=seed, outcome="", gate=gate, base=base, rounds=(only,))
    rounds = []
    for row in record.rounds:
        steps = row.heal.steps if row.heal else ()
        rounds.append(
            Round(
                outcome=row.outcome,
                multiplier=row.multiplier,
                kept=row.kept,
                drawn=row.drawn,
                survival=row.walk[-1].survival,
                cosine=row.direction_cosine,
                kl_round=row.kl_round,
                kl_cumulative=row.kl_cumulative,
                internalised=row.internalised,
                steered=state(read_scores(folder, row.round, "steered")) if row.steered else None,
                healed=state(read_scores(folder, row.round, "healed")) if row.healed else None,
                findings=tuple((found.check, found.outcome) for found in row.findings),
                ce=short(step.ce for step in steps),
                divergence=short(step.divergence for step in steps),
                barrier=short(step.barrier for step in steps),
                pressure=short(step.pressure for step in steps),
                held_out=short(row.heal.held_out) if row.heal else (),
            )
        )
    return Run(
        arm=arm, seed=seed, outcome=record.outcome, gate=1.0, base=base, rounds=tuple(rounds)
    )


def finished(runs: Path, part: str, seeds: Sequence[int]) -> list[Run]:
    """Every finished run of a part; refuses one made with other settings than the arm's."""
    found = []
    for arm in PARTS[part].arms:
        for seed in seeds:
            folder = runs / f"{part}-{arm.name}-s{seed}"
            if not (folder / "run.json").is_file() or read_run(folder).status != "finished":
                continue
            # Settings that came later have their defaults in older runs.
            there = read_run(folder).settings(folder)
            if there != settings(PARTS[part], arm, seed):
                raise SystemExit(f"{folder} was made with other settings than arm {arm.name}")
            found.append(whole(folder, arm.name, arm.gate, seed))
    return found


def write(part: str, runs: Sequence[Run]) -> Path:
    """Saves a part's records beside those kept before.

    Remove the file when the settings of its arms change.
    """
    path = FOLDER / f"{part}.jsonl.gz"
    FOLDER.mkdir(exist_ok=True)
    merged = {(run.arm, run.seed): run for run in (*read(part), *runs)}
    order = [arm.name for arm in PARTS[part].arms]
    ordered = sorted(merged.values(), key=lambda run: (order.index(run.arm), run.seed))
    pack(path, ordered)
    return path


def read(part: str) -> list[Run]:
    """A part's records."""
    return unpack(FOLDER / f"{part}.jsonl.gz", Run)


def pack(path: Path, records: Sequence[Record]) -> None:
    """Records as compressed lines, the same bytes for the same records."""
    text = "".join(record.model_dump_json() + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def unpack(path: Path, kind: type[R]) -> list[R]:
    """The records of a file; none where there is no file."""
    if not path.exists():
        return []
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    return [kind.model_validate_json(line) for line in lines if line]


def main() -> None:
    """Keeps what is finished."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    # The cases are read off their runs' own records.
    for part in [name for name in PARTS if name != "cases"]:
        found = finished(options.runs, part, options.seeds)
        if found:
            path = write(part, found)
            print(f"{path.name}: {len(found)} runs, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
