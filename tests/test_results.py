"""docs/results.md holds what its commands print from the records that are kept beside them."""

import re
import sys
from pathlib import Path
from types import ModuleType

import blind
import frontier_tables
import pytest
import reliability
import tables

pytestmark = [pytest.mark.slow, pytest.mark.drawn]

ROOT = Path(__file__).parents[1]
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
SCRIPTS = {script.__name__: script for script in (tables, frontier_tables, blind, reliability)}
COMMANDS = [
    (script, part)
    for script, part in re.findall(
        r"^python lab/evidence/(\w+)\.py ([\w.-]+)(?: --figure \S+)?$", RESULTS, flags=re.MULTILINE
    )
    if script in SCRIPTS
]


def parts(name: str) -> set[str]:
    """What docs/results.md tells a script to print."""
    return {part for script, part in COMMANDS if script == name}


def test_every_kept_record_has_its_command() -> None:
    kept = {path.name.split(".")[0] for path in (ROOT / "lab/evidence/records").glob("*.gz")}
    assert kept == parts("tables")


@pytest.mark.parametrize("script", [frontier_tables, blind, reliability])
def test_every_table_has_its_command(script: ModuleType) -> None:
    assert parts(script.__name__) == set(script.PARTS)


def test_every_item_that_is_drawn_has_its_label() -> None:
    names = ("love", "authority", *blind.CONTRASTS)
    items = [item for name in names for item in blind.labelled(name)]
    label = {"coherent", "acts", "better"}
    drawn = [{key: item[key] for key in item.keys() - label} for item in items]
    assert sorted(drawn, key=lambda item: item["id"]) == blind.key()
    assert all(item.keys() & label in ({"coherent", "acts"}, {"better"}) for item in items)


@pytest.mark.parametrize(("script", "part"), [(SCRIPTS[name], part) for name, part in COMMANDS])
def test_tables_are_what_their_command_prints(
    script: ModuleType,
    part: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [script.__name__, part])
    script.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) >= 4
    missing = [row for row in rows if row not in RESULTS]
    assert not missing, missing[0]
