"""docs/results.md holds what its commands print from the records that are kept beside them."""

import re
import sys
from pathlib import Path
from types import ModuleType

import frontier_tables
import pytest
import tables

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python lab/evidence/tables\.py (\w+)", RESULTS, flags=re.MULTILINE)
FRONTIER = re.findall(
    r"^python lab/evidence/frontier_tables\.py ([\w.-]+)$", RESULTS, flags=re.MULTILINE
)


def test_every_kept_record_has_its_command() -> None:
    kept = {path.name.split(".")[0] for path in (ROOT / "lab/evidence/records").glob("*.gz")}
    assert kept == set(COMMANDS)


def test_every_table_of_the_frontier_has_its_command() -> None:
    assert sorted(FRONTIER) == sorted(frontier_tables.PARTS)


@pytest.mark.parametrize(
    ("script", "part"),
    [(tables, part) for part in COMMANDS] + [(frontier_tables, part) for part in FRONTIER],
)
def test_tables_are_what_their_command_prints(
    script: ModuleType,
    part: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [script.__name__, part])
    script.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) > 4
    missing = [row for row in rows if row not in RESULTS]
    assert not missing, missing[0]
