"""The table of readings: one from outside the package, older records, where names stand."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import brevity
from reports import fill, folded, run_record
from steerheal.cli import main
from steerheal.config import MeasureSettings, RunConfig, SamplingSettings
from steerheal.errors import UserError
from steerheal.measure import instruments
from steerheal.measure.compare import across_seeds, compare
from steerheal.measure.evaluate import evaluate, size
from steerheal.measure.readings import table
from steerheal.measure.summary import summarise
from steerheal.measure.summary import tested as on_test
from steerheal.personas import Persona, find
from steerheal.records import VERSION, Evaluation, OnTest, Reading, RunRecord, Scores
from steerheal.report.page import write_report
from steerheal.state.values import base
from steerheal.store import read_record, read_run, write_record
from test_sweep import swept

import tiny

SOURCE = Path(__file__).parents[1] / "src" / "steerheal"
OLD = Path(__file__).parent / "data" / "old"
"""A run's record and its rows as version 2 wrote them."""
MEASURE = MeasureSettings(
    instrument="likelihood", per_foundation=1, prompts=3, tokens=6, long_prompts=0, json_prompts=0,
    held_out_pairs=0, control_prompts=0, tasks=0,
)  # fmt: skip
ORDINARY = SamplingSettings(tokens=6)
NAME = brevity.ENTRY.name


@pytest.fixture
def added() -> Iterator[None]:
    table.add(brevity.ENTRY)
    yield
    table.remove(NAME)


def read(prompt: str = "") -> Scores:
    state = base().prompted(prompt) if prompt else base()
    role = "healed" if prompt else "base"
    return evaluate(
        tiny.chat(), role, state, tiny.persona(), MEASURE, sampling=ORDINARY, seed=0
    )  # fmt: skip


# ── from outside the package ────────────────────────────────────────────────────────────────────


@pytest.mark.long
@pytest.mark.usefixtures("added")
def test_a_reading_from_a_file_of_its_own_is_in_everything_that_shows_readings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "240")
    zero, healed = read(), read("Be long.")
    assert [row.id for row in healed.own[NAME]] == list(brevity.ASKED)
    assert all(row.completion and row.parts["kl"] > 0 for row in healed.own[NAME])
    assert size(MEASURE, tiny.persona()) == 7 + len(zero.canary) + 3 + len(brevity.ASKED)
    axis = tiny.persona().axis
    # Summary and comparison.
    whole, found = summarise(zero, zero, axis), summarise(healed, zero, axis)
    assert found.values[NAME].value == sum(row.value for row in healed.own[NAME]) / 3
    compared = compare(healed, zero, axis)
    assert compared.changes[NAME] == found.changes[NAME] and compared.changes[NAME].n == 3
    # JSON, and the console of a saved evaluation.
    saved = Evaluation(
        target="t", model="m", dtype="float32", instrument="likelihood", think=0,
        persona=tiny.persona().model_dump(mode="json"), aggregates=found, rows=healed.vignettes,
        others=healed.model_copy(update={"vignettes": ()}),
    )  # fmt: skip
    file = tmp_path / "readings.json"
    write_record(file, saved)
    assert json.loads(file.read_text())["aggregates"]["values"][NAME]["n"] == 3
    main(["evaluate", str(file), "--against", str(file)])
    said = capsys.readouterr().out
    assert brevity.ENTRY.label in said and brevity.ENTRY.difference in said
    # The report: guard, differences, figure.
    rows = (folded(0).model_copy(update={"healed": found, "comparisons": (compared,)}),)
    record = run_record(base=whole, rounds=rows, best=0, test=on_test(healed, zero, 0, axis))
    page = write_report(fill(tmp_path / "run", record)).read_text()
    assert page.count(f"<th>{brevity.ENTRY.title}") + page.count(brevity.ENTRY.title) >= 3
    assert f"change of {brevity.ENTRY.title}" in page
    # Seeds.
    for seed in (0, 1):
        settings = record.settings("r").model_copy(update={"seed": seed})
        write_record(
            tmp_path / f"s{seed}" / "run.json", record.model_copy(update={"config": settings})
        )
    main(["seeds", str(tmp_path / "s0"), str(tmp_path / "s1")])
    assert capsys.readouterr().out.count(brevity.ENTRY.difference) == 2
    assert NAME in across_seeds([compared, compared]).readings


@pytest.mark.usefixtures("added")
def test_a_dose_reads_it_too_and_other_code_of_it_makes_an_evaluation_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert swept((1.0,)).points[0].summary.values[NAME].n == 3
    texts = instruments.texts(MEASURE)
    (own,) = [text for text in texts if text.startswith(NAME)]
    real = table.inspect.getsource
    monkeypatch.setattr(
        table.inspect,
        "getsource",
        lambda module: "other" if module is brevity else real(module),
    )
    changed = instruments.texts(MEASURE)
    assert [text for text in texts if text not in changed] == [own]
    assert len(changed) == len(texts)
    table.remove(NAME)
    assert instruments.texts(MEASURE) == [text for text in texts if text != own]
    table.add(brevity.ENTRY)


@pytest.mark.long
@pytest.mark.usefixtures("added")
def test_a_record_with_a_reading_that_is_not_here_still_shows_it(tmp_path: Path) -> None:
    found = summarise(read(), read(), tiny.persona().axis)
    record = run_record(base=found, rounds=(folded(0).model_copy(update={"healed": found}),))
    fill(tmp_path, record)
    table.remove(NAME)
    assert NAME in write_report(tmp_path).read_text()
    table.add(brevity.ENTRY)


@pytest.mark.usefixtures("added")
def test_a_name_twice_and_an_entry_that_computes_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="'kept_brief' already"):
        table.add(brevity.ENTRY)
    with pytest.raises(ValueError, match="computes nothing"):
        table.add(table.Entry(name="nothing", title="nothing", kind="guard"))


@pytest.mark.usefixtures("added")
def test_states_on_other_prompts_of_their_own_are_unknown_and_not_refused() -> None:
    zero = read()
    fewer = zero.model_copy(update={"own": {NAME: zero.own[NAME][:2]}})
    found = compare(zero, fewer, tiny.persona().axis).changes[NAME]
    assert found == Reading.unknown(f"the two states were measured on different rows of {NAME}")


# ── names ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("entry", table.entries(), ids=lambda entry: entry.name)
def test_no_name_of_a_reading_stands_in_more_than_two_source_files(entry: table.Entry) -> None:
    word = re.compile(rf"\b{entry.name}\b")
    files = [*SOURCE.rglob("*.py"), *SOURCE.rglob("*.j2")]
    found = [str(file.relative_to(SOURCE)) for file in files if word.search(file.read_text())]
    assert len(found) <= 2, found


def test_every_part_has_one_reading() -> None:
    played = [entry.part for entry in table.entries() if entry.part and not entry.under]
    assert sorted(played) == ["coherence", "cost", "distance", "fluency", "trait"]
    forced = table.heads("forced_choice")
    assert forced.pop("beside") == table.heads()["trait"] != forced["trait"]
    assert forced["coherence"] != table.heads()["coherence"]
    assert {part for part in forced if forced[part] != table.heads()[part]} == {
        "trait", "coherence",
    }  # fmt: skip


@pytest.mark.long
def test_the_table_and_the_report_load_no_model() -> None:
    program = (
        "import sys, steerheal.report.page\n"
        "from steerheal.measure.readings.table import entries\nentries()\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-500:]


# ── older records ───────────────────────────────────────────────────────────────────────────────


def old(name: str) -> Scores:
    return read_record(OLD / f"{name}.json", Scores)


def test_an_older_record_opens_with_the_numbers_that_its_rows_give() -> None:
    raw, record = json.loads((OLD / "run.json").read_text()), read_run(OLD)
    axis = find("authority").axis
    zero, steered, healed = old("base"), old("steered"), old("healed")
    assert record.base is not None
    row, flat = record.rounds[0], raw["rounds"][0]
    for state, held, was in (
        (steered, row.steered, flat["steered"]),
        (healed, row.healed, flat["healed"]),
        (zero, record.base, raw["base"]),
    ):
        assert held is not None
        again = summarise(state, zero, axis)
        # What a forced choice says of trait and coherence was in the rows and no reading yet.
        assert len(held.values) == 15 and not held.led_by_foundation and again.led_by_foundation
        assert again.values.keys() - held.values.keys() == {
            "choice_mass", "nats_on_target", "nats_off_target", "nats_discrimination",
        }  # fmt: skip
        for name, reading in held.values.items():
            assert reading.value == pytest.approx(again.values[name].value), name
        for name in (held.heads["trait"], held.heads["coherence"]):
            assert repr(held.changes[name]) == repr(again.changes[name])
        assert held.nats == again.nats
        assert held.coherence == held.mass.value / record.base.mass.value
        assert held.gain.value == was["delta_logodds"]["value"]
        assert held.perplexity == was["perplexity"]
    for held, (b, a) in zip(
        row.comparisons, ((steered, zero), (healed, zero), (healed, steered)), strict=True
    ):
        again = compare(b, a, axis, base=zero)
        assert len(held.changes) == 8
        for name, reading in held.changes.items():
            assert reading == again.changes[name] or name == held.heads["cost"]
        assert set(held.moved) <= set(again.moved)
    assert row.sweep is not None
    (_, full, control), was = row.sweep.points, flat["sweep"]["points"]
    assert full.summary.gain.value == was[1]["delta_logodds"]["value"] and control.control
    assert full.summary.kl.value == was[1]["kl"] and full.summary.perplexity == was[1]["perplexity"]
    assert record.test is not None
    again = on_test(healed, zero, 0, axis)
    assert record.test.gain == again.free_gain
    assert record.test.change("fluency") == again.change("fluency")
    assert record.test.kl == again.kl


def test_an_older_evaluation_opens() -> None:
    found = read_record(OLD / "evaluation.json", Evaluation)
    again = summarise(found.scores, old("base"), find("authority").axis)
    assert repr(found.aggregates.trait) == repr(again.free_trait)


@pytest.mark.long
def test_an_older_record_is_reported_and_written_again_as_one_of_this_version(
    tmp_path: Path,
) -> None:
    record = read_run(OLD)
    shutil.copy(OLD / "run.json", tmp_path)
    page = write_report(tmp_path).read_text()
    assert "share of “not wrong”" in page and "SI flips" in page
    write_record(tmp_path / "run.json", record)
    assert json.loads((tmp_path / "run.json").read_text())["version"] == VERSION
    assert repr(read_run(tmp_path)) == repr(record)


def test_settings_and_persona_are_typed_whatever_wrote_them() -> None:
    record, saved = read_run(OLD), read_record(OLD / "evaluation.json", Evaluation)
    assert isinstance(record.config, RunConfig) and isinstance(record.persona, Persona)
    assert record.unread() == [] and record.settings(OLD).rounds == 1
    assert isinstance(saved.persona, Persona) and saved.seed == 0


@pytest.mark.long
def test_settings_of_another_version_are_shown_as_they_stand_with_a_note_and_run_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = json.loads((OLD / "run.json").read_text())
    raw["config"]["heal"]["objective"] = "dreaming"
    raw["config"]["coherence_floor"] = 0.875
    raw["persona"]["prompts"]["show"] = []
    (tmp_path / "run.json").write_text(json.dumps(raw))
    main(["report", str(tmp_path)])
    assert "The run's settings, as another version wrote" in capsys.readouterr().err
    page = (tmp_path / "report.html").read_text()
    assert "heal.objective" in page and "dreaming" in page and "The run&#39;s persona" in page
    assert "0.875 of the base" in page and "authority" in page
    with pytest.raises(UserError, match=r"heal\.objective: given dreaming"):
        read_run(tmp_path).settings(tmp_path)
    # What is written again is what was there.
    write_record(tmp_path / "run.json", read_run(tmp_path))
    assert json.loads((tmp_path / "run.json").read_text())["config"] == raw["config"]


def test_a_field_that_no_version_had_is_still_refused() -> None:
    raw = json.loads((OLD / "run.json").read_text())
    raw["base"]["delta_logodd"] = raw["base"]["delta_logodds"]
    with pytest.raises(ValueError, match="delta_logodd"):
        RunRecord.model_validate(raw)
    with pytest.raises(ValueError, match="gain"):
        OnTest.model_validate({"round": 0, "prompts": 1, "gain": 1.0})
