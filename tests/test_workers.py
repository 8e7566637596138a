"""Jobs on several processes: workers that die, and those that are told to end."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from steerheal.console import Console
from steerheal.pipeline import on_processes as local
from steerheal.pipeline.jobs import Outcome
from steerheal.pipeline.on_processes import on_processes


class Dying(NamedTuple):
    """A job that kills its worker so many times, and leaves a file each time that it is begun."""

    name: str
    folder: Path
    deaths: int = 0

    def do(self, console: Console) -> None:
        before = len(list(self.folder.glob(f"{self.name}-*")))
        seen = (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OF_ALL"])
        (self.folder / f"{self.name}-{before}").write_text(" ".join(seen))
        if before < self.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        console.note("done")


@pytest.mark.long
def test_a_worker_that_dies_is_replaced_and_its_job_begun_anew_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local, "RETRIES", 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    jobs = [Dying("one", tmp_path), Dying("two", tmp_path, 1), Dying("three", tmp_path, 9)]
    outcomes = on_processes(jobs, 2, ["4", "7"], lambda count: {"OF_ALL": f"{count}"})
    ended = {outcome.name: outcome for outcome in outcomes}
    assert ended["one"] == Outcome("one") and ended["two"] == Outcome("two")
    assert "worker was lost" in ended["three"].error
    begun = sorted(path.name for path in tmp_path.iterdir())
    assert begun == ["one-0", "three-0", "three-1", "two-0", "two-1"]
    # Each worker sees a device of its own, and so does the one in its place.
    devices = [(tmp_path / name).read_text() for name in ("one-0", "two-0", "two-1")]
    assert set(devices[:2]) == {"4 2", "7 2"} and "CUDA_VISIBLE_DEVICES" not in os.environ
    assert sorted(capfd.readouterr().err.splitlines()) == ["one · done", "two · done"]


class Waiting(NamedTuple):
    """A job that waits for a file, and says that it was interrupted where it is."""

    name: str
    folder: Path
    until: str

    def do(self, console: Console) -> None:
        assert "torch" not in sys.modules  # a process is there before it has to wait for a model
        (self.folder / self.name).touch()
        try:
            console.note("waits")
            while not (self.folder / self.until).exists():
                time.sleep(0.01)
        except KeyboardInterrupt:
            (self.folder / "interrupted").write_text(self.name)
            raise


@pytest.mark.long
def test_workers_that_are_told_to_end_leave_what_an_interruption_leaves(tmp_path: Path) -> None:
    jobs = [Waiting("one", tmp_path, until="two"), Waiting("two", tmp_path, until="never")]
    at_work = on_processes(jobs, workers=2)
    assert next(at_work) == Outcome("one")
    for child in psutil.Process().children():
        child.send_signal(signal.SIGINT)  # as the terminal does, to all of them
    assert not (tmp_path / "interrupted").exists()
    at_work.close()
    assert (tmp_path / "interrupted").read_text() == "two"
