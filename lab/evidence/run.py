"""Runs behind docs/results.md: one round per barrier, its controls, and the loop, over seeds.

Every arm is a plain run in the folder given (its `run.json` holds all settings), except that the
show prompts are not answered; arms share the stages they have in common. A run that was cut off
goes on where it stopped, finished ones are skipped, and several workers may share a folder.
Usage: python lab/evidence/run.py PART --runs DIR [--seeds 0 1 2] [--arms NAME ...]
"""

import argparse
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psutil
from arms import PARTS, Arm, settings

from steerheal.config import RunConfig
from steerheal.models.load import load
from steerheal.models.model import ChatModel
from steerheal.personas import find
from steerheal.pipeline import loop
from steerheal.pipeline.stage_store import Store
from steerheal.pipeline.stages import BASE, Stages
from steerheal.pipeline.surroundings import environment
from steerheal.records import HealStep, Reading, RoundRecord, RunRecord, Shown, StageMark
from steerheal.state.adapter import Adapter
from steerheal.state.values import State, base
from steerheal.store import read_run, round_folder


class Unshown(Stages):
    """Stages that leave the show prompts out."""

    def shown(self, number: int, role: str, state: State) -> Shown:
        """Nothing."""
        return Shown(state=role, completions=())


class Log:
    """One line per stage, round and note."""

    def __init__(self, name: str) -> None:
        self._name = name

    def mark(self, mark: StageMark) -> None:
        """A stage is there."""
        if not mark.reused:
            self.note(f"round {mark.round + 1} {mark.name} {mark.seconds:.0f} s")

    def note(self, text: str) -> None:
        """A line."""
        print(f"{self._name}: {text}", flush=True)

    def heal_step(self, number: int, step: HealStep, of: int) -> None:
        """Unsaid."""

    def stage(self, title: str, total: int) -> AbstractContextManager[Any]:
        """Unsaid."""
        return nullcontext(lambda _: None)

    def round_done(self, record: RoundRecord) -> None:
        """Trait and coherence."""
        read = record.healed
        if read is not None:
            trait, kl = said(read.gain), said(read.kl)
            self.note(f"round {record.round + 1} Δ {trait} ppx {read.perplexity:.2f} KL {kl}")


def said(reading: Reading) -> str:
    """A reading in brackets."""
    return f"{reading.value:.3f} [{reading.low:.3f}, {reading.high:.3f}]"


def main() -> None:
    """Does what is left of a part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", help="all of the part when not given")
    options = parser.parse_args()
    part = PARTS[options.part]
    chat = load(RunConfig().model)
    for seed in options.seeds:
        for arm in part.arms:
            if options.arms and arm.name not in options.arms:
                continue
            config = settings(part, arm, seed)
            name = f"{options.part}-{arm.name}-s{seed}"
            with claimed(options.runs, name) as mine:
                if mine:
                    store = Store(options.runs, name, notify=Log(name).mark)
                    done(chat, config, store, arm, f"{options.part}-nll-s{seed}")


def done(chat: ChatModel, config: RunConfig, store: Store, arm: Arm, parent: str) -> None:
    """One arm at one seed; `parent` is the run whose adapter a lower gate reads."""
    runs, name = store.runs, store.folder.name
    log, persona = Log(name), find(config.persona, reverse=config.reverse)
    record = RunRecord(
        status="running",
        name=name,
        config=config,
        command="",
        environment=environment(chat, config),
        persona=persona,
    )
    stages = Unshown(config, persona, chat, store, log)
    if arm.gate is None:
        store.write_run(record)
        loop.run(stages, record, log)
        return
    # A lower gate needs no training: the parent's adapter is read at it.
    adapter = Adapter.load(round_folder(runs / parent, 0) / "adapter")
    stages.evaluated(BASE, "base", base())
    stages.evaluated(0, "healed", base().folded(adapter, arm.gate), before=base())
    store.write_run(record.model_copy(update={"status": "finished", "outcome": "gate only"}))


@contextmanager
def claimed(runs: Path, name: str) -> Iterator[bool]:
    """Whether this worker is to do a run that nobody has done or is doing."""
    done = runs / name / "run.json"
    if done.is_file() and read_run(done.parent).status == "finished":
        yield False
        return
    claim = runs / ".claims" / name
    claim.parent.mkdir(parents=True, exist_ok=True)
    if claim.exists() and not psutil.pid_exists(int(claim.read_text() or -1)):
        claim.unlink()
    try:
        with claim.open("x") as stream:
            stream.write(str(os.getpid()))
    except FileExistsError:
        yield False
        return
    try:
        yield True
    finally:
        claim.unlink()


if __name__ == "__main__":
    main()
