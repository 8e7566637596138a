"""docs/results.md holds what its commands print from the records that are kept beside them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python (lab/evidence/tables\.py \w+)", RESULTS, flags=re.MULTILINE)


def test_every_kept_record_has_its_command() -> None:
    kept = {path.name.split(".")[0] for path in (ROOT / "lab/evidence/records").glob("*.gz")}
    assert kept == {command.split()[-1] for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_tables_are_what_their_command_prints(command: str) -> None:
    script, part = command.split()
    found = subprocess.run(
        [sys.executable, script, part], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rows = [line for line in found.stdout.splitlines() if line.startswith("|")]
    assert len(rows) > 4
    missing = [row for row in rows if row not in RESULTS]
    assert not missing, missing[0]
