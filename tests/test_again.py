"""Giving a run's command again: it goes on, or is refused with both names, and loses nothing."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from steerheal.cli import main
from steerheal.errors import UserError
from steerheal.pipeline import run, surroundings
from steerheal.pipeline.plan import CODE_CHANGED, home_of, made_with
from steerheal.pipeline.stage_store import STAGES
from steerheal.prompts import lines
from steerheal.records import RunRecord
from steerheal.store import read_run
from test_cli import failing
from test_edge import options

import tiny

pytestmark = pytest.mark.slow

WITHOUT = ("--no-control", "--no-read-prompted")
CALM = Path(__file__).parents[1] / "examples" / "calm.toml"


class Case:
    """A finished run of a persona file on a model folder, both of which a test may change."""

    def __init__(self, home: Path) -> None:
        self.model, self.persona = home / "model", home / "mine.toml"
        self.runs, self.run = home / "runs", home / "runs" / "one"

    @property
    def line(self) -> list[str]:
        named = ["run", str(self.persona), "--runs", str(self.runs), "--name", "one"]
        return [*named, *options(self.model)]

    def content(self) -> dict[str, bytes]:
        """Every file of the runs, to the byte."""
        files = (path for path in self.runs.rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    case = Case(home)
    shutil.copytree(tiny.saved(tmp_path_factory.mktemp("model")), case.model)
    shutil.copy(CALM, case.persona)
    main(case.line)
    return home


@pytest.fixture(autouse=True)
def restored(made: Path, tmp_path: Path) -> Iterator[None]:
    """Whatever a test changed is put back."""
    kept = tmp_path / "as-it-was"
    shutil.copytree(made, kept)
    yield
    shutil.rmtree(made)
    shutil.copytree(kept, made)


def rounds(record: RunRecord) -> list[str]:
    """What the rounds hold; as text, since what is unknown equals nothing."""
    return [row.model_dump_json() for row in record.rounds]


def other_weight(case: Case) -> None:
    file = case.model / "model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[7] += 0.5
    save_file(tensors, file, metadata={"format": "pt"})


def other_persona(case: Case) -> None:
    text = case.persona.read_text(encoding="utf-8")
    case.persona.write_text(text.replace("calm", "serene"), encoding="utf-8")


def nothing(_case: Case) -> None:
    """The files stay as they are."""


@pytest.mark.parametrize(
    "change",
    [
        (other_weight, [], ["another model", "--name", "there", "here"]),
        (other_persona, [], ["another persona", "--name", "mine.toml", "--resume"]),
        (nothing, ["--seed", "3"], ["other settings: seed 0 there, 3 here", "--name"]),
    ],
)
@pytest.mark.parametrize("status", ["finished", "interrupted"])
def test_another_run_is_refused_before_anything_is_written(
    made: Path,
    change: tuple[Callable[[Case], None], list[str], list[str]],
    status: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case, (happens, besides, words) = Case(made), change
    record = case.run / "run.json"
    record.write_text(record.read_text().replace('"status": "finished"', f'"status": "{status}"'))
    happens(case)
    before = case.content()
    said = failing([*case.line, *besides], capsys)
    assert all(word in said for word in words), said
    assert case.content() == before


def test_resume_refuses_another_model_and_keeps_its_own_persona(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case(made)
    other_persona(case)
    before = read_run(case.run)
    main(["run", "--resume", str(case.run)])
    capsys.readouterr()
    after = read_run(case.run)
    assert rounds(after) == rounds(before) and all(mark.reused for mark in after.stages)
    other_weight(case)
    content = case.content()
    said = failing(["run", "--resume", str(case.run)], capsys)
    assert "another model" in said and before.environment["fingerprint"] in said
    assert case.content() == content


def test_a_record_from_before_paraphrases_goes_on_as_the_persona_that_it_was(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case(made)
    before, file = read_run(case.run), case.run / "run.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    del record["persona"]["paraphrases"]
    file.write_text(json.dumps(record), encoding="utf-8")
    main(case.line)
    capsys.readouterr()
    after = read_run(case.run)
    assert rounds(after) == rounds(before) and all(mark.reused for mark in after.stages)
    with case.persona.open("a", encoding="utf-8") as stream:
        stream.write('\n[[paraphrases.train]]\npositive = "Rest."\nnegative = "Rush."\n')
    said = failing(case.line, capsys)
    assert "another persona" in said and "paraphrases.train" in said


def test_a_record_from_before_a_setting_goes_on_without_it(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case(made)
    before, file = read_run(case.run), case.run / "run.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    del record["config"]["control"], record["config"]["read_prompted"]
    file.write_text(json.dumps(record), encoding="utf-8")
    repeated = [word for word in case.line if word not in WITHOUT]
    main(repeated)
    said, after = capsys.readouterr(), read_run(case.run)
    assert rounds(after) == rounds(before) and all(mark.reused for mark in after.stages)
    assert not after.settings("").control and not after.settings("").read_prompted
    assert "from before control, and goes on" in said.out + said.err
    # The newer settings stand in the record now: what is asked for is another run.
    assert "control False there, True here" in failing(repeated, capsys)


def test_a_record_from_before_statements_were_chosen_read_all_of_them(made: Path) -> None:
    case = Case(made)
    record = json.loads((case.run / "run.json").read_text(encoding="utf-8"))
    del record["config"]["measure"]["statements"]
    found = made_with(case.run, RunRecord.model_validate(record))
    assert found.measure.statements == len(lines("statements"))


def test_a_finished_record_outlives_a_resume_that_fails(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case(made)
    whole, before = read_run(case.run), (case.run / "run.json").read_bytes()
    (vector,) = (case.runs / STAGES).glob("vector-*")
    (vector / "vector.safetensors").write_bytes(b"cut")

    def fails(*_: object, **__: object) -> None:
        raise UserError("it cannot be made again today")

    tiny.in_place_of(monkeypatch, "VECTOR", fails)
    said = failing(["run", "--resume", str(case.run)], capsys)
    assert "cannot be made again today" in said and "stays as it is" in said
    assert (case.run / "run.json").read_bytes() == before
    monkeypatch.undo()
    main(["run", "--resume", str(case.run)])
    assert "set aside" not in capsys.readouterr().err
    after = read_run(case.run)
    assert after.status == "finished" and rounds(after) == rounds(whole)
    assert [m.name for m in after.stages if not m.reused] == ["vector"]


def test_changed_code_is_allowed_with_a_note(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case(made)
    monkeypatch.setattr(surroundings, "all_of_it", lambda: "of another day")
    main(["run", "--resume", str(case.run)])
    assert CODE_CHANGED in capsys.readouterr().err
    assert CODE_CHANGED in read_run(case.run).notes


def test_a_damaged_record_comes_back_by_deleting_it_and_repeating_the_command(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case(made)
    before = read_run(case.run)
    file = case.run / "run.json"
    file.write_bytes(file.read_bytes()[:3000])
    assert "Delete that file" in failing(["run", "--resume", str(case.run)], capsys)
    assert "Delete that file" in failing(case.line, capsys)
    file.unlink()
    main(case.line)
    after = read_run(case.run)
    assert rounds(after) == rounds(before) and all(mark.reused for mark in after.stages)


def test_a_run_is_resumed_where_its_stages_are_however_its_folder_is_named(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case(made)
    (tmp_path / "latest").symlink_to(case.run)
    (tmp_path / "all").symlink_to(case.runs)
    monkeypatch.chdir(case.run)
    ways = [".", "./", "../one", "round-01/..", str(tmp_path / "latest"), f"{tmp_path}/all/one/"]
    for way in ways:
        assert home_of(Path(way)).parent.samefile(case.runs), way
    main(["run", "--resume", "."])
    assert all(mark.reused for mark in read_run(case.run).stages)
    assert read_run(case.run).name == "one"
    assert list(case.run.rglob(STAGES)) == []
    capsys.readouterr()


def test_a_moved_run_that_is_linked_from_its_old_place_finds_its_stages(tmp_path: Path) -> None:
    (tmp_path / "runs" / STAGES).mkdir(parents=True)
    (tmp_path / "big" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one").symlink_to(tmp_path / "big" / "one")
    assert home_of(tmp_path / "runs" / "one") == tmp_path / "runs" / "one"


def test_two_runs_have_their_folders_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    seen: list[list[str]] = []

    def loading(_settings: object) -> None:
        seen.append(sorted(path.name for path in runs.iterdir()))
        if len(seen) == 1:
            assert "no model today" in failing(line, capsys)
            assert "Another steerheal process" in failing([*line, "--name", "love"], capsys)
        raise UserError("no model today")

    line = ["run", "love", "--runs", str(runs)]
    monkeypatch.setattr(run, "load", loading)
    assert "no model today" in failing(line, capsys)
    assert seen == [["love"], ["love", "love-2"]]
    assert not runs.exists()


def test_what_a_run_leaves_has_ordinary_modes(made: Path) -> None:
    case = Case(made)
    probe = made / "probe"
    probe.touch()
    file = probe.stat().st_mode & 0o777
    found = {path.stat().st_mode & 0o777 for path in case.runs.rglob("*") if path.is_file()}
    assert found == {file}
    folders = {path.stat().st_mode & 0o777 for path in case.runs.rglob("*") if path.is_dir()}
    assert folders == {case.runs.stat().st_mode & 0o777}
