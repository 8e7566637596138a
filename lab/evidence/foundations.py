"""Foundation nats of one round's states on all bundled everyday vignettes, which qualify.

The runs of run.py read 14 vignettes, too few for the likelihood instrument on the embedded model.
This reads base, steered and healed students of the arms that both personas have on all of them, the
base under a random vector whose KL equals the steering vector's, and the controls of `love`: a
student healed on unsteered text, and one with its gate turned down to as little KL. It keeps every
reading in the runs' folder and writes lab/evidence/records/foundations.jsonl.gz.
Usage: python lab/evidence/foundations.py --runs DIR [--seeds 0 1 2] [--personas love authority]
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from arms import PARTS
from kept import FOLDER, pack, short, unpack

from steerheal.config import MeasureSettings, ModelSettings
from steerheal.measure import likelihood
from steerheal.measure.qualify import centre, hits, in_words, qualify
from steerheal.measure.vignettes import chosen
from steerheal.models.load import load
from steerheal.models.model import ChatModel
from steerheal.personas import find
from steerheal.pipeline.declared import ADAPTER, VECTOR_FILE
from steerheal.records import Record, Scores, VignetteRow
from steerheal.state.adapter import Adapter
from steerheal.state.values import State, base
from steerheal.state.vector import SteeringVector
from steerheal.steer.equal import equal_kl
from steerheal.store import read_lines, read_run, read_scores, round_folder, write_lines

PERSONAS = ("love", "authority")
BASE, STEERED, RANDOM = "base", "steered, no heal", "random vector, equal KL"
SHARED = PARTS["authority"].arms
ALONE = [arm for arm in PARTS["love"].arms if arm.name in {"nll-gate-0.25", "nll-unsteered"}]
TEXTS = 12
"""Of the base, on which the two vectors' KL is made equal."""
VIGNETTES = chosen(MeasureSettings())
FILE = FOLDER / "foundations.jsonl.gz"


class Nats(Record):
    """A state's vignettes, in their order; the base has no persona and no seed."""

    persona: str
    seed: int
    state: str
    p: tuple[tuple[float, ...], ...]
    """Per vignette, over the foundations."""
    right: tuple[bool, ...]
    """Ranked right after centring on the base's means."""


def states(
    chat: ChatModel, runs: Path, personas: list[str], seeds: list[int]
) -> Iterator[tuple[str, int, str, Callable[[], State]]]:
    """Every state there is to read: persona, seed, name, and what makes it."""
    yield "", -1, BASE, base
    for persona in personas:
        for arm in [*SHARED, *(ALONE if persona == "love" else ())]:
            # A lower gate reads the nll run's adapter.
            run, gate = (arm.name, None) if arm.gate is None else ("nll", arm.gate)
            for seed in seeds:
                folder = runs / f"{persona}-{run}-s{seed}"
                if not (folder / "run.json").is_file() or read_run(folder).status != "finished":
                    print(f"{folder.name}: not finished, skipped", flush=True)
                    continue
                row, place = read_run(folder).rounds[0], round_folder(folder, 0)
                if arm.name == "nll":
                    # The dose that run.py reads the steered student at.
                    dose = row.multiplier * max(read_run(folder).settings(folder).dose.sweep)
                    vector = SteeringVector.load(place / VECTOR_FILE)
                    steered = base().steered(vector, dose)
                    yield persona, seed, STEERED, lambda steered=steered: steered
                    yield persona, seed, RANDOM, partial(random, chat, folder, steered, seed)
                student = base().folded(Adapter.load(place / ADAPTER), gate or row.gate)
                yield persona, seed, arm.name, lambda student=student: student


def random(chat: ChatModel, folder: Path, like: State, seed: int) -> State:
    """The base under a random vector that costs as much KL as this steered state does."""
    texts = [row.completion for row in read_scores(folder, -1, "base").persona[:TEXTS]]
    found = equal_kl(chat, base(), like, texts, seed=seed)
    if found.vector is None:
        raise SystemExit(f"{folder.name}: no random vector costs {found.target:.2f} nats")
    return base().steered(found.vector, 1.0)


def scores(rows: tuple[VignetteRow, ...]) -> Scores:
    """Rows as the qualification wants them."""
    return Scores(state="", instrument="likelihood", vignettes=rows, canary=(), persona=())


def main() -> None:
    """Reads what is missing, and keeps all that is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--personas", nargs="+", default=[*PERSONAS], choices=PERSONAS)
    asked = parser.parse_args()
    chat = load(ModelSettings(device="cpu"))
    middle, found = None, {(item.persona, item.seed, item.state): item for item in read()}
    for persona, seed, name, make in states(chat, asked.runs, asked.personas, asked.seeds):
        path = asked.runs / "foundations" / f"{persona or BASE}-{name}-s{seed}.jsonl"
        if not path.is_file():
            with make().entered(chat) as reader:
                write_lines(path, likelihood.read(reader, VIGNETTES))
            print(path.name, flush=True)
        rows = tuple(read_lines(path, VignetteRow))
        if middle is None:
            middle = centre(scores(rows))
            for each in PERSONAS:
                print(f"{each}: {in_words(qualify(scores(rows), find(each).axis))}", flush=True)
        right = tuple(bool(hit) for hit in hits(rows, middle))
        p = tuple(short(row.p) for row in rows)
        found[persona, seed, name] = Nats(persona=persona, seed=seed, state=name, p=p, right=right)
    names = [BASE, STEERED, RANDOM, *(arm.name for arm in (*SHARED, *ALONE))]
    places = ["", *PERSONAS]
    ordered = sorted(
        found.values(),
        key=lambda item: (places.index(item.persona), names.index(item.state), item.seed),
    )
    pack(FILE, ordered)
    print(f"{FILE.name}: {len(ordered)} states, {FILE.stat().st_size / 1024:.0f} KiB")


def read() -> list[Nats]:
    """What is kept."""
    return unpack(FILE, Nats)


if __name__ == "__main__":
    main()
