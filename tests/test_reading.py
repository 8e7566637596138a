"""`steerheal evaluate`: a run is read as it was read, and nothing is read twice; early refusals."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import brevity
from steerheal.cli import main, parse
from steerheal.commands import personas, target
from steerheal.commands.evaluate import EvaluateCommand
from steerheal.config import MeasureSettings
from steerheal.errors import UserError
from steerheal.measure.readings import table
from steerheal.models import reordered
from steerheal.models.reordered import reordered_in
from steerheal.personas import Pair, Paraphrases, built_in
from steerheal.pipeline import history
from steerheal.records import Evaluation, Scores
from steerheal.store import read_record, read_run, read_scores

import tiny

pytestmark = pytest.mark.slow

OPTIONS = [
    "--model.device", "cpu", "--rounds", "1", "--coherence-floor", "0", "--seed", "3",
    "--no-control", "--no-read-prompted",
    "--vector.contexts", "4", "--sampling.tokens", "8", "--sampling.rows", "8",
    "--dose.want", "8", "--dose.minimum", "4", "--dose.batches", "2", "--dose.walks", "1",
    "--filter.tail-perplexity", "1e9", "--filter.words", "1", "--filter.word-repetition", "1",
    "--filter.char-repetition", "1", "--filter.false-drop", "0", "--filter.rule-drop", "0",
    "--filter.kl-spike", "1e9", "--filter.similarity", "9", "--filter.calibration-texts", "8",
    "--heal.epochs", "1", "--heal.rank", "2", "--check.doses",
    "--instrument", "likelihood", "--measure.per-foundation", "2", "--measure.prompts", "3",
    "--measure.statements", "4", "--measure.tokens", "5",
    "--measure.long-prompts", "2", "--measure.long-tokens", "4",
    "--measure.json-prompts", "2", "--measure.held-out-pairs", "1",
    "--measure.control-prompts", "2", "--measure.control-tokens", "4",
    "--measure.tasks", "2", "--measure.task-tokens", "4",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    model = tiny.saved(tmp_path_factory.mktemp("model"))
    main(["run", "love", "--runs", str(folder), "--name", "a", "--model", str(model), *OPTIONS])
    return folder / "a"


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The states that a command reads."""
    seen: list[str] = []
    real = target.evaluate

    def noted(chat: Any, state: str, *rest: Any, **more: Any) -> Scores:
        seen.append(state)
        return real(chat, state, *rest, **more)

    monkeypatch.setattr(target, "evaluate", noted)
    yield seen


def read(run: Path, out: Path, *words: str) -> Evaluation:
    main(["evaluate", str(run), "--json", str(out), *words])
    return read_record(out, Evaluation)


def refused(words: list[str]) -> str:
    with pytest.raises(UserError) as found:
        parse(words[0], words[1:]).check()
    return str(found.value)


def test_a_run_is_read_as_it_was_and_its_base_is_not_read_again(
    run: Path, tmp_path: Path, states: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = read(run, tmp_path / "a.json")
    own = read_scores(run, 0, "healed")
    assert states == ["healed"]
    assert found.rows == own.vignettes and found.others.canary == own.canary
    assert [r.completion for r in found.others.persona] == [r.completion for r in own.persona]
    assert [r.completion for r in found.others.long] == [r.completion for r in own.long]
    said = capsys.readouterr()
    assert f"read as {run} was" in said.err and "but" not in found.how
    assert "base: the run's own readings" in said.err
    assert found.seed == 3 and isinstance(found.settings, MeasureSettings)
    assert found.settings.tokens == 5


def test_a_reading_that_the_run_did_not_have_reads_its_base_anew(
    run: Path, tmp_path: Path, states: list[str]
) -> None:
    table.add(brevity.ENTRY)
    try:
        found = read(run, tmp_path / "r.json")
    finally:
        table.remove(brevity.ENTRY.name)
    assert states == ["base", "healed"]
    assert found.aggregates.changes[brevity.ENTRY.name].n == len(brevity.ASKED)


def test_what_is_read_otherwise_is_named_and_fewer_needs_no_new_base(
    run: Path, tmp_path: Path, states: list[str]
) -> None:
    words = [
        "--per-foundation",
        "1",
        "--prompts",
        "2",
        "--long-prompts",
        "1",
        "--json-prompts",
        "0",
    ]
    found = read(run, tmp_path / "a.json", *words)
    assert states == ["healed"]
    assert len(found.rows) == 7 and len(found.others.persona) == 2
    assert (len(found.others.long), len(found.others.json_replies)) == (1, 0)
    for option in ("--per-foundation 1", "--prompts 2", "--long-prompts 1", "--json-prompts 0"):
        assert option in found.how
    own = read_scores(run, 0, "healed")
    rows = {row.id: row for row in own.vignettes}
    assert all(row.score == pytest.approx(rows[row.id].score, abs=1e-4) for row in found.rows)


@pytest.mark.parametrize("words", [["--tokens", "4"], ["--seed", "4"], ["--per-foundation", "3"]])
def test_another_reading_reads_the_base_as_well(
    words: list[str], run: Path, tmp_path: Path, states: list[str]
) -> None:
    found = read(run, tmp_path / "a.json", *words)
    assert states == ["base", "healed"] and f"but {' '.join(words)}" in found.how


def test_a_base_that_other_code_has_read_is_read_again(
    run: Path, tmp_path: Path, states: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steerheal.pipeline.stage.made_by", lambda _: "other")
    read(run, tmp_path / "a.json")
    assert states == ["base", "healed"]


def test_gate_0_is_the_base_wherever_a_gate_is(
    run: Path, tmp_path: Path, states: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = read(run, tmp_path / "a.json", "--gate", "0")
    assert states == []
    assert found.rows == read_scores(run, -1, "base").vignettes
    assert all(reading.value == 0 for reading in found.aggregates.delta_nats.values())
    main(["sample", str(run), "--gate", "0", "--tokens", "4", "--prompt", "hello"])
    assert "gate 0" in capsys.readouterr().out
    main(["export", str(run), "--gate", "0", "--format", "peft", "--out", str(tmp_path / "peft")])
    said = capsys.readouterr().out
    assert "0.00e+00" in said and "the base" in said


def test_quick_reads_no_more_than_the_preset_and_never_more_than_the_run(run: Path) -> None:
    persona = tiny.persona(prompts=read_run(run).whose(run).prompts)
    options = parse("evaluate", ["--quick"])
    assert isinstance(options, EvaluateCommand)
    ask = options.asked(persona)
    assert (ask.measure.prompts, ask.measure.per_foundation, ask.measure.long_prompts) == (20, 1, 0)
    options = parse("evaluate", [str(run), "--quick"])
    assert isinstance(options, EvaluateCommand)
    assert options.asked(persona).measure.prompts == 3
    # The run's few of everything stay; the preset has no long answers and no JSON replies.
    how = options.asked(persona).how
    assert how == f"read as {run} was, but --per-foundation 1 --long-prompts 0 --json-prompts 0"


def test_more_prompts_than_the_persona_has_are_refused(run: Path) -> None:
    assert "has 32 evaluation prompts" in refused(["evaluate", str(run), "--prompts", "33"])


def test_places_that_cannot_be_written_are_refused_before_anything_is_read(
    run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    assert "is a folder" in refused(["evaluate", "--json", str(tmp_path)])
    assert "is a file, not a folder" in refused(["evaluate", "--json", str(file / "a.json")])
    assert "holds no readings" in refused(["evaluate", "--json", str(file)])
    assert "holds no readings" in refused(["evaluate", "--json", str(run / "run.json")])
    assert "cannot be written" in refused(["evaluate", "--json", "/proc/none/a.json"])
    link = tmp_path / "link"
    link.symlink_to("link")
    for place in ("/dev/null", "/dev/full", str(link)):
        assert "is no plain file" in refused(["evaluate", "--json", place])
    assert "leads nowhere" in refused(["run", "--runs", str(link)])
    assert "is a file, not a folder" in refused(["run", "--runs", str(file)])
    assert "is a file, not a folder" in refused(["scan", "--out", str(file)])
    assert "exists" in refused(["export", str(run), "--out", str(file)])
    assert "cannot be written" in refused(["export", str(run), "--out", "/proc/none"])
    assert file.read_text() == "x"


def test_what_is_missing_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    assert "no run folder, PEFT adapter folder or file" in refused(["evaluate", str(adapter)])
    (adapter / "adapter_config.json").write_text("{")
    assert "has no adapter_model.safetensors" in refused(["evaluate", str(adapter)])
    (adapter / "adapter_model.safetensors").write_text("")
    assert "Cannot read" in refused(["evaluate", str(adapter)])
    for words in (["run"], ["evaluate"], ["scan"]):
        option = "--measure." if words == ["run"] else "--"
        assert "package of that name" in refused([*words, "--instrument", "moralmaps"])
        assert "Unknown vignette set" in refused([*words, f"{option}vignettes", "evryday"])
        assert "protocol nowhere.json" in refused([*words, f"{option}protocol", "nowhere.json"])
    assert "needs the harness" in refused(["evaluate", "--guard", "lm_eval:piqa"])
    assert "Unknown guard" in refused(["evaluate", "--guard", "piqa"])
    assert "not a run folder" in refused(["evaluate", "--against", "nowhere"])
    assert "contexts are bundled" in refused(["scan", "--contexts", "5000"])


@pytest.mark.parametrize(
    ("row", "said"),
    [("3", "not a JSON object"), ("[" * 100_000, "not JSON"), ('"x"', "not a JSON object"),
     ('{"id": 1, "foundation_coarse": ["Care"], "text": "a"}', "Unknown foundation"),
     ('{"id": 1, "foundation_coarse": "Care", "text": {"a": 1}}', "no text")],
)  # fmt: skip
def test_a_vignette_that_is_none_is_one_clear_message(row: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(row + "\n")
    assert said in refused(["evaluate", "--vignettes", str(file)])


def test_vignettes_may_hold_line_separators_and_a_byte_order_mark(tmp_path: Path) -> None:
    row = {"id": "1", "foundation_coarse": "Care", "text": "one\u2028two"}
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(row, ensure_ascii=False).encode() + b"\r\n")
    from steerheal.measure.vignettes import load  # noqa: PLC0415

    assert [vignette.text for vignette in load(str(file))] == ["one\u2028two"]


@pytest.mark.parametrize(
    "words",
    [["evaluate", "--guard", "piqa"], ["evaluate", "nowhere"], ["export", "nowhere"],
     ["run", "--measure.vignettes", "evryday"], ["scan", "--doses", "x"],
     ["run", "--heal.rank", "0"]],
)  # fmt: skip
def test_refusals_import_no_torch(words: list[str]) -> None:
    program = (
        "import sys\nfrom steerheal.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as stop:\n    assert stop.code == 2\n"
        "else:\n    raise AssertionError\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, *words], check=True, capture_output=True)


def test_sample_takes_several_prompts_and_those_of_standard_input(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loads = []
    real = history.load
    monkeypatch.setattr(history, "load", lambda settings: loads.append(1) or real(settings))
    piped = io.TextIOWrapper(io.BytesIO("\ufeffpiped one\r\n\r\npiped two\n".encode()))
    monkeypatch.setattr("sys.stdin", piped)
    main(["sample", str(run), "--tokens", "2", "--prompt", "first", "-", "--prompt", "last"])
    said = capsys.readouterr().out
    places = [said.index(prompt) for prompt in ("first", "piped one", "piped two", "last")]
    assert places == sorted(places) and len(loads) == 1
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    with pytest.raises(SystemExit):
        main(["sample", str(run), "--prompt", "-"])
    assert "holds no prompt" in capsys.readouterr().err
    for wrong, message in (("", "allowed"), ("x" * 60_000, "at most 8000 characters")):
        assert message in refused(["sample", str(run), "--prompt", wrong])


@pytest.mark.skipif(not reordered._there(), reason="this processor has no such products")
@pytest.mark.parametrize("words", [["sample", "--tokens", "2"], ["evaluate"], ["chat"]])
def test_what_reads_a_run_s_student_reads_reordered_weights(
    words: list[str], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, real = [], history.load
    monkeypatch.setattr(
        history, "load", lambda settings: loaded.append(real(settings)) or loaded[0]
    )
    monkeypatch.setattr(reordered, "LEAST", 1)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    command, *rest = words
    main([command, str(run), *rest])
    assert reordered_in(loaded[0].net) > 0


def test_a_persona_file_is_said_to_be_fine_or_what_looks_like_a_slip(
    capsys: pytest.CaptureFixture[str],
) -> None:
    calm = Path(__file__).parents[1] / "examples" / "calm.toml"
    main(["personas", str(calm)])
    said = capsys.readouterr().out
    assert "is a persona that runs" in said and "warning" not in said
    assert "persona calm has 3 evaluation prompts" in said
    assert "no train paraphrases" in said and "no held_out paraphrases" in said
    main(["personas", "love", "--reverse"])
    shown = capsys.readouterr().out
    assert "paraphrases, train (8 pairs)" in shown and "held_out (8 pairs)" in shown
    pair = built_in()["love"].pairs("held_out")[0]
    assert f"  + {pair.negative}\n  - {pair.positive}\n" in shown
    slips = tiny.persona(
        positive="You never hurry.",
        negative="You hurry in everything that you do at any hour of the day and of the night.",
        prompts=tiny.persona().prompts.model_copy(update={"show": ("Train: 0!", "show b")}),
    )
    halves = Paraphrases(held_out=(Pair(positive="You do not run.", negative="You run at once."),))
    (negated,) = personas.warnings(tiny.persona(paraphrases=halves))
    assert negated.startswith("paraphrases.held_out.0: the positive pole negates (not)")
    found = personas.warnings(slips)
    assert [warning.split()[0] for warning in found] == ["'Train:", "the", "the"]
    assert "'train 0' in train" in found[0] and "3 and 17 words" in found[1]
    assert "negates (never)" in found[2]
