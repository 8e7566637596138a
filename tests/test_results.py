"""docs/results.md and docs/evidence.md hold what their records say."""

import gzip
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import blind
import frontier_tables
import larger
import paired
import pytest
import reliability

from steerheal.records.comparing import CompareRecord
from steerheal.report.compare import main_table, markdown, readings_table

pytestmark = [pytest.mark.slow, pytest.mark.drawn]

ROOT = Path(__file__).parents[1]
RESULTS, EVIDENCE = (
    (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("results", "evidence")
)
COMPARED = sorted((ROOT / "lab/evidence/records/compare").glob("*.json.gz"))
ALL = (frontier_tables, blind, paired, reliability, larger)
SCRIPTS = {script.__name__: script for script in ALL}
COMMANDS = [
    (script, part)
    for script, part in re.findall(
        r"^python lab/evidence/(\w+)\.py ([\w.-]+)(?: --figure \S+)?$", EVIDENCE, flags=re.MULTILINE
    )
    if script in SCRIPTS
]


def parts(name: str) -> set[str]:
    """What docs/evidence.md tells a script to print."""
    return {part for script, part in COMMANDS if script == name}


@pytest.mark.parametrize("file", COMPARED, ids=lambda file: file.name.split(".")[0])
def test_comparisons_are_what_their_records_say(file: Path) -> None:
    record = CompareRecord.model_validate_json(gzip.decompress(file.read_bytes()))
    assert record.command in RESULTS
    for table in (main_table(record), readings_table(record)):
        assert markdown(table) in RESULTS


@pytest.mark.parametrize("script", ALL)
def test_every_table_has_its_command(script: ModuleType) -> None:
    assert parts(script.__name__) == set(script.PARTS)


@pytest.mark.parametrize("part", paired.PARTS)
def test_every_pair_that_is_drawn_has_its_label(part: str) -> None:
    said = {"better", "coherent", "acts"}
    lines = paired.labels(part).read_text(encoding="utf-8").splitlines()
    items = [json.loads(line) for line in lines]
    drawn = [{name: item[name] for name in item.keys() - said} for item in items]
    assert drawn == paired.key(part.removesuffix(paired.SECOND))


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
    missing = [row for row in rows if row not in EVIDENCE]
    assert not missing, missing[0]
