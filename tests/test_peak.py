"""The most memory that a stage holds, and who is told of it."""

from pathlib import Path

import pytest
import torch

from steerheal.models import peak as module
from steerheal.models.peak import RESET, peak
from steerheal.pipeline.stage_store import Store
from steerheal.records import StageMark

MIB = 1 << 20
LINUX = pytest.mark.skipif(
    not RESET.exists() or torch.cuda.is_initialized(), reason="reads Linux's mark of this process"
)


def held(mib: int) -> None:
    """So many MiB, held and given back."""
    assert bytearray(mib * MIB)[-1] == 0


@LINUX
def test_a_peak_is_that_of_its_own_context() -> None:
    with peak() as small:
        held(8)
    with peak() as large:
        held(256)
    with peak() as after:
        held(8)
    assert 200 * MIB < large.bytes - small.bytes < 300 * MIB
    assert abs(after.bytes - small.bytes) < 64 * MIB


@LINUX
def test_contexts_in_each_other_hear_of_the_inner_ones_and_of_what_was_before() -> None:
    with peak() as idle:
        pass
    with peak() as outer:
        held(256)
        with peak() as inner:
            held(64)
    with peak() as around, peak():
        held(256)
    assert inner.bytes - idle.bytes < 128 * MIB < 200 * MIB < outer.bytes - idle.bytes
    assert around.bytes - idle.bytes > 200 * MIB


def test_where_the_mark_cannot_be_set_back_the_peak_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(module, "RESET", tmp_path / "no" / "such")
    with peak() as found:
        held(8)
    assert found.bytes == 0


def test_a_gpu_is_asked_only_where_it_is_used_and_all_of_them_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    marks, used = {0: 5, 1: 7}, [False]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: used[0])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda i: marks.update({i: i}))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", marks.__getitem__)
    with peak() as idle:
        pass
    assert marks == {0: 5, 1: 7} and idle.bytes not in (5, 7)
    used[0] = True
    with peak() as found:
        marks[1] = 9
    assert found.bytes == 9 and marks == {0: 0, 1: 1}


@LINUX
def test_a_stage_tells_of_its_peak_when_it_is_found_as_well(tmp_path: Path) -> None:
    def made(mib: int) -> StageMark:
        marks = list[StageMark]()
        store = Store(tmp_path, "run", notify=marks.append)
        store.stage("one", 0, "k-c", make=lambda: held(mib), save=_saved, load=lambda _: "")
        return marks[0]

    first = made(64)
    again = made(1)
    assert first.memory > 64 * MIB and (first.reused, again.reused) == (False, True)
    assert again.memory == first.memory


def _saved(folder: Path, _: object) -> None:
    (folder / "a.txt").write_text("a", encoding="utf-8")
