"""docs/results.md holds what its commands print from the records that are kept beside them."""

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python (lab/evidence/tables\.py \w+)", RESULTS, flags=re.MULTILINE)
FRONTIER = re.findall(
    r"^python lab/evidence/frontier_tables\.py ([\w.-]+)$", RESULTS, flags=re.MULTILINE
)


def test_every_kept_record_has_its_command() -> None:
    kept = {path.name.split(".")[0] for path in (ROOT / "lab/evidence/records").glob("*.gz")}
    assert kept == {command.split()[-1] for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_tables_are_what_their_command_prints(command: str) -> None:
    script, part = command.split()
    found = subprocess.run(
        [sys.executable, script, part], cwd=ROOT, capture_output=True, text=True, check=True
    )
    _holds(found.stdout)


@pytest.fixture(scope="module")
def frontier() -> Iterator[ModuleType]:
    """The script of the frontier's tables, once: they are made of the same records."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "lab" / "evidence"))
        yield importlib.import_module("frontier_tables")


def test_every_table_of_the_frontier_has_its_command(frontier: ModuleType) -> None:
    assert sorted(FRONTIER) == sorted(frontier.PARTS)


@pytest.mark.parametrize("part", FRONTIER)
def test_tables_of_the_frontier_are_what_their_command_prints(
    part: str,
    frontier: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["frontier_tables.py", part])
    frontier.main()
    _holds(capsys.readouterr().out)


def _holds(printed: str) -> None:
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(rows) > 4
    missing = [row for row in rows if row not in RESULTS]
    assert not missing, missing[0]
