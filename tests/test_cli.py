"""The command line: clear mistakes, exit codes, and every command on a tiny run."""

import json
from pathlib import Path

import pytest

from steerheal.cli import main
from steerheal.config import HealSettings
from steerheal.console import Console
from steerheal.pipeline.history import student_of
from steerheal.pipeline.surroundings import notes
from steerheal.records import VERSION
from steerheal.store import RUN, read_run

import tiny

pytestmark = pytest.mark.slow

CALM = str(Path(__file__).parents[1] / "examples" / "calm.toml")
OPTIONS = [
    "--model", "{model}", "--device", "cpu", "--rounds", "1", "--coherence-floor", "0",
    "--no-control", "--no-read-prompted",
    "--vector.contexts", "4", "--sampling.tokens", "8", "--sampling.rows", "8",
    "--dose.want", "8", "--dose.minimum", "4", "--dose.batches", "2", "--dose.walks", "1",
    "--filter.tail-perplexity", "1e9", "--filter.words", "1", "--filter.word-repetition", "1",
    "--filter.char-repetition", "1", "--filter.false-drop", "0", "--filter.rule-drop", "0",
    "--filter.kl-spike", "1e9", "--filter.similarity", "9", "--filter.calibration-texts", "8",
    "--heal.epochs", "1", "--heal.rank", "2",
    "--instrument", "likelihood", "--measure.per-foundation", "1", "--measure.prompts", "3",
    "--measure.tokens", "4", "--measure.statements", "4",
    "--measure.long-prompts", "1", "--measure.long-tokens", "4",
    "--measure.json-prompts", "0", "--measure.held-out-pairs", "1",
    "--measure.control-prompts", "2", "--measure.control-tokens", "4",
    "--measure.tasks", "2", "--measure.task-tokens", "4",
    "--check.doses", "0.5", "2", "--check.prompts", "3", "--check.tokens", "4",
    "--check.per-foundation", "1",
    "--dose.curve", "0.5", "1", "2", "--dose.curve-prompts", "2", "--dose.curve-tokens", "4",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    options = [part.format(model=model).replace("--device", "--model.device") for part in OPTIONS]
    main(["run", "love", "--runs", str(folder), "--name", "one", *options])
    return folder


def failing(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one message of a command that must end with exit code 2."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    said = capsys.readouterr()
    text = " ".join((said.err + said.out).split())
    assert "Traceback" not in text
    return text


def test_a_run_leaves_a_report_and_prints_its_headline(
    runs: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [part.format(model=model).replace("--device", "--model.device") for part in OPTIONS]
    main(["run", "love", "--runs", str(runs), "--name", "one", *options])
    said = capsys.readouterr()
    assert "report.html" in said.out
    assert "reused" in said.err
    assert "without any hook" in said.out
    page = (runs / "one" / "report.html").read_text()
    assert "steerheal run love" in page
    record = json.loads((runs / "one" / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["config"]["model"]["name"] == str(model)
    assert record["environment"]["dtype"] == "float32"


def test_resume_takes_the_runs_own_settings(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(name: str, **_: object) -> None:
        raise AssertionError(f"{name} is looked for, though the run holds it")

    monkeypatch.setattr("steerheal.pipeline.plan.find", gone)
    before = json.loads((runs / "one" / "run.json").read_text())
    main(["run", "--resume", str(runs / "one")])
    after = json.loads((runs / "one" / "run.json").read_text())
    assert all(stage["reused"] for stage in after["stages"])
    assert after["rounds"] == before["rounds"] and after["command"] == before["command"]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("besides", "said"),
    [
        (["--rounds", "9"], "given besides: --rounds 9."),
        (["love"], "given besides: love."),
        (["--preset", "quick", "--name", "two"], "given besides: --preset quick --name two."),
        # What a preset gives anyhow is not what the run has.
        (["--preset", "standard"], "given besides: --preset standard."),
        (["--until", "check1", "--heal.lr=5e-4"], "given besides: --heal.lr 5e-4."),
    ],
)
def test_resume_refuses_what_it_would_ignore(
    runs: Path, besides: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in failing(["run", "--resume", str(runs / "one"), *besides], capsys)


def test_a_taken_name_with_other_settings_is_refused(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = failing(["run", "love", "--runs", str(runs), "--name", "one"], capsys)
    assert "other settings" in said and "--resume" in said


def test_a_run_that_names_no_best_round_says_which_one_is_taken(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = runs / "one"
    chosen = read_run(folder).model_copy(update={"best": 0})
    student_of(chosen, folder, 0, 1.0, Console())
    assert "no best round" not in capsys.readouterr().err
    unchosen = chosen.model_copy(update={"best": None, "best_reason": "no round gained"})
    assert student_of(unchosen, folder, 0, 1.0, Console())[2] == 1
    assert "names no best round: no round gained. Round 1 is taken" in capsys.readouterr().err
    student_of(unchosen, folder, 1, 1.0, Console())
    assert "no best round" not in capsys.readouterr().err


def test_sample_export_report_and_evaluate_work_on_a_run(
    runs: Path,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    run = str(runs / "one")
    main(["sample", run, "--prompt", "hello [bold]you[/bold]", "--tokens", "4", "--gate", "0.5"])
    said = capsys.readouterr().out
    assert "round 1, gate 0.5" in said and "[bold]" in said
    main(["export", run, "--out", str(tmp_path / "peft")])
    assert "largest logit difference" in capsys.readouterr().out
    assert (tmp_path / "peft" / "README.md").read_text().startswith("---\nlibrary_name: ")
    main(["export", run, "--format", "gguf-lora", "--rank", "1", "--out", str(tmp_path / "lora")])
    assert "rank 1 of 2" in capsys.readouterr().out
    main(["export", run, "--format", "vector", "--out", str(tmp_path / "vector")])
    assert "every direction is the same" in capsys.readouterr().out
    main(["export", run, "--format", "bias", "--dose", "0.5", "--out", str(tmp_path / "bias")])
    assert "as biases, dose 0.5, of round 1" in capsys.readouterr().out
    assert "only --format bias" in failing(["export", run, "--dose", "2"], capsys)
    assert "has no rank" in failing(["export", run, "--format", "merged", "--rank", "8"], capsys)
    assert "is none" in failing(["export", run, "--format", "gguf"], capsys)
    assert "exists" in failing(["export", run, "--out", str(tmp_path / "peft")], capsys)
    main(["report", run])
    assert "report.html" in capsys.readouterr().out
    out = tmp_path / "readings.json"
    main(["evaluate", run, "--against", run, "--json", str(out)])
    said = capsys.readouterr().out
    assert "against" in said and "7 pairs" in said
    assert "--model, --persona" in failing(
        ["evaluate", run, "--persona", "calm", "--model", "other"], capsys
    )
    assert "--per-foundation" in failing(
        ["evaluate", run, "--against", run, "--per-foundation", "2"], capsys
    )
    main(["evaluate", run, "--per-foundation", "2", "--json", str(out)])
    readings = json.loads(out.read_text())
    assert readings["others"]["state"] == "healed"
    first = readings["rows"][0]
    assert {"id", "condition", "score", "p", "p_ans_any", "nll_prefill"} <= first.keys()
    assert len(first["score"]) == len(first["p"]) == 7
    small = [
        "--model", str(model), "--instrument", "likelihood", "--per-foundation", "2",
        "--prompts", "3", "--tokens", "4", "--long-prompts", "1", "--json-prompts", "1",
    ]  # fmt: skip
    again = tmp_path / "adapter.json"
    main(["evaluate", str(tmp_path / "peft"), *small, "--persona", "love", "--json", str(again)])
    assert "persona log-odds" in capsys.readouterr().out
    base = tmp_path / "base.json"
    main(["evaluate", *small, "--json", str(base)])
    capsys.readouterr()
    main(["evaluate", str(again), "--against", str(base)])
    said = capsys.readouterr().out
    assert "gated selectivity" in said and "14 pairs" in said


def test_seeds_are_read_together_and_unlike_runs_are_refused(
    runs: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [part.format(model=model).replace("--device", "--model.device") for part in OPTIONS]
    one, two, other = runs / "one", runs / "two", runs / "other"
    main(["run", "love", "--runs", str(runs), "--name", "two", *options, "--seed", "1"])
    capsys.readouterr()
    main(["seeds", str(one), str(two)])
    said = capsys.readouterr().out
    values = [
        next(
            item.gain.value
            for item in read_run(folder).rounds[0].comparisons
            if (item.b, item.a) == ("healed", "base")
        )
        for folder in (one, two)
    ]
    assert "healed − base · 2 seeds" in said and "Δ persona log-odds" in said
    assert f"{sum(values) / 2:.3f} [" in said
    assert "loyalty" not in said
    main(["seeds", str(one), str(two), "--all"])
    assert "delta_nats.loyalty" in capsys.readouterr().out
    assert "two or more" in failing(["seeds", str(one)], capsys)
    assert "differ in their seed" in failing(["seeds", str(one), str(one)], capsys)
    record = json.loads((two / RUN).read_text(encoding="utf-8"))
    record["config"]["heal"]["lam"] = 0.7
    other.mkdir()
    (other / RUN).write_text(json.dumps(record), encoding="utf-8")
    assert "more than their seed: heal.lam" in failing(["seeds", str(one), str(other)], capsys)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["rnu"], "Perhaps you meant 'run'"),
        (["run", "lvoe"], "Perhaps you meant 'love'"),
        (["run", "--preset", "quik"], "Perhaps you meant 'quick'"),
        (["run", "--heal.lamm", "1"], "--heal.lam"),
        (["run", "--heal.lam", "-1"], "--heal.lam: given -1; allowed: a number from 0 to 1e9"),
        (["run", "--heal.lam", "much"], "--heal.lam: given much; allowed: a number"),
        (["run", "--vector.band", "0.6", "0.4"], "band must rise"),
        (["run", "--dose.want", "4"], "at least minimum"),
        (["run", "--model", "nowhere.gguf"], "no GGUF file"),
        (["run", "--plan", "--model", "nowhere.gguf"], "no GGUF file"),
        (["run", "--model", "no/such/model"], "no such folder or file"),
        (["run", "--config", "nowhere.toml"], "Cannot read the file nowhere.toml"),
        (["run", "--measure.vignettes", "evryday"], "Perhaps you meant 'everyday'"),
        (["run", "--vector.contexts", "5000"], "contexts are bundled"),
        (["run", "--heal.targets", "qproj"], "Perhaps you meant 'q_proj'"),
        (["run", "--name", "a/b"], "one folder name"),
        (["run", "--resume", "nowhere"], "not a run folder"),
        (["sample", "nowhere"], "not a run folder"),
        (["report", "nowhere"], "not a run folder"),
        (["export", "nowhere"], "not a run folder"),
        (["evaluate", "nowhere"], "nowhere does not exist, and is no run folder"),
        (["evaluate", "--against", "nowhere"], "not a run folder"),
        (["evaluate", "--guard", "piqa"], "Unknown guard"),
        (["evaluate", "--round", "2"], "Without effect: --round"),
        (["evaluate", "--gate", "0.5"], "Without effect: --gate"),
        (["evaluate", "saved.json", "--vignettes", "ai"], "saved.json does not exist"),
        (["seeds"], "RUNS is missing"),
        (["seeds", "one"], "not a run folder"),
        (["personas", "lov"], "Perhaps you meant 'love'"),
    ],
)
def test_a_mistake_is_one_clear_message_and_exit_code_2(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in failing(arguments, capsys)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[heal]\nlamda = 1\n", "Perhaps you meant 'lam'"),
        ("rounds = 'two'\n", "rounds"),
        ("[heal]\nlam = -1\n", "heal.lam"),
        ("rounds = \n", "not valid TOML"),
    ],
)
def test_a_wrong_settings_file_is_one_clear_message(
    text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    said = failing(["run", "--config", str(file)], capsys)
    assert expected in said and "run.toml" in said


def test_no_such_round_and_no_such_version_are_clear(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no folded round 7" in failing(["sample", str(runs / "one"), "--round", "7"], capsys)
    record = json.loads((runs / "one" / "run.json").read_text()) | {"version": VERSION + 1}
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert "another version" in failing(["run", "--resume", str(tmp_path)], capsys)


def test_a_full_disk_ends_with_one_message_and_a_readable_record(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("steerheal.state.vector.save_file", full)
    options = [part.format(model=model).replace("--device", "--model.device") for part in OPTIONS]
    said = failing(["run", "love", "--runs", str(tmp_path), "--name", "full", *options], capsys)
    assert "No space left" in said
    record = json.loads((tmp_path / "full" / "run.json").read_text())
    assert record["status"] == "failed" and "No space left" in record["error"]
    monkeypatch.undo()
    main(["run", "--resume", str(tmp_path / "full")])
    assert json.loads((tmp_path / "full" / "run.json").read_text())["status"] == "finished"


def test_ctrl_c_leaves_an_interrupted_record_and_exit_code_130(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    tiny.in_place_of(monkeypatch, "VECTOR", stop)
    options = [part.format(model=model).replace("--device", "--model.device") for part in OPTIONS]
    options[options.index("--measure.prompts") + 1] = "20"
    with pytest.raises(SystemExit) as ended:
        main(["run", CALM, "--runs", str(tmp_path), "--name", "cut", *options])
    assert ended.value.code == 130
    said = capsys.readouterr().err
    assert f"steerheal run --resume {tmp_path / 'cut'}" in said
    record = read_run(tmp_path / "cut")
    assert record.status == "interrupted"
    # The persona has fewer evaluation prompts.
    assert record.settings("r").measure.prompts == 3 and "has 3 evaluation prompts" in said


def test_a_setting_of_a_barrier_without_one_is_said_to_do_nothing() -> None:
    chat = tiny.chat()
    assert notes(chat, HealSettings()) == ()
    assert notes(chat, HealSettings(barrier="kl_rev", lam=1.0)) == ()
    (said,) = notes(chat, HealSettings(lam=1.0, tau=0.2))
    assert "heal.lam, heal.tau without effect" in said
    assert "kl_rev" in said
