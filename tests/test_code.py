"""A stage's key knows the code that makes it, and only that."""

import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import test_loop
from steerheal import code
from steerheal.config import VectorSettings
from steerheal.disk import write_text
from steerheal.personas import Persona
from steerheal.pipeline.stage import Stage
from steerheal.pipeline.stage_store import Store
from steerheal.pipeline.stages import STAGES, VECTOR, all_of_it
from steerheal.records import StageMark
from steerheal.state.values import State, base
from steerheal.state.vector import SteeringVector
from steerheal.steer.vector import extract
from steerheal.store import read_run

import tiny

SOURCE = Path(code.__file__).parent
EVERY = {stage.name for stage in STAGES}


def copied(tmp_path: Path) -> Path:
    """A copy of the package."""
    root = tmp_path / "steerheal"
    shutil.copytree(SOURCE, root, ignore=shutil.ignore_patterns("__pycache__", "data"))
    return root


def changed(root: Path) -> set[str]:
    """The stages that this copy of the package makes with other code."""
    return {
        stage.name
        for stage in STAGES
        if code.digest_of(stage.by, root) != code.digest_of(stage.by, SOURCE)
    }


@pytest.mark.long
@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("report/words.py", set()),
        ("console.py", set()),
        ("cli.py", set()),
        ("checks/rules.py", set()),
        ("pipeline/loop.py", set()),
        ("pipeline/round.py", set()),
        ("pipeline/walk.py", {"harvest"}),
        ("measure/sweep.py", {"sweep"}),
        ("heal/optimiser.py", {"heal"}),
        ("steer/internalise.py", {"internalise"}),
        ("measure/auto.py", {"qualify"}),
        ("steer/methods/mean_difference.py", {"vector"}),
        ("state/formulas.py", EVERY - {"qualify", "calibrate", "judged"}),
        ("pipeline/stage.py", EVERY),
        ("pipeline/declared.py", EVERY),
        ("pipeline/stages.py", EVERY),
        ("pipeline/unsteered.py", {"unsteered"}),
        ("models/generate.py", EVERY - {"qualify", "judged"}),
    ],
)
def test_a_change_counts_where_it_computes(tmp_path: Path, file: str, stages: set[str]) -> None:
    root = copied(tmp_path)
    with (root / file).open("a", encoding="utf-8") as stream:
        stream.write("ADDED = 1\n")
    assert changed(root) == stages


@pytest.mark.long
def test_comments_blank_lines_and_docstrings_do_not_count(tmp_path: Path) -> None:
    root = copied(tmp_path)
    for name in ("config/steering.py", "steer/vector.py", "models/generate.py"):
        file = root / name
        text = file.read_text(encoding="utf-8")
        said = text.replace('"""', '"""Said otherwise. ', 1)
        said = re.sub(r'(?<=:\n)    """(?=[A-Z])', '    """Also here. ', said)
        assert said.count("Said otherwise") == 1 and "Also here" in said
        said = said.replace("\ndef ", "\n# a remark\n\n\ndef ")
        file.write_text(said, encoding="utf-8")
    assert changed(root) == set()


@pytest.mark.slow
def test_the_digest_is_the_same_in_every_process() -> None:
    program = "from steerheal.pipeline.stages import all_of_it; print(all_of_it())"
    other = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(SOURCE.parent), "PYTHONHASHSEED": "1"},
    )  # fmt: skip
    assert other.stdout.strip() == all_of_it()


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stage_s_code_begins_with_its_function_s_own_module(stage: Stage) -> None:
    assert stage.function.__module__ == f"steerheal.{stage.by[0]}"
    named = inspect.signature(stage.function).parameters
    assert stage.counts.keys() <= named.keys()


def test_an_input_counts_by_its_own_key_and_by_what_a_stage_says_of_it() -> None:
    chat, persona, settings = tiny.chat(), tiny.persona(), VectorSettings()

    def key(student: State, persona: Persona = persona, settings: VectorSettings = settings) -> str:
        return VECTOR.of(chat, persona, ["a"], settings, student=student).key

    assert key(base()) == key(base())
    assert key(base()) != key(base().prompted("Be brief."))
    assert key(base()) != key(base(), settings=VectorSettings(seed=1))
    # The vector reads the poles, and nothing else of a persona.
    asked = tiny.prompts(test=("another prompt",))
    assert key(base()) == key(base(), tiny.persona(prompts=asked))
    assert key(base()) != key(base(), persona.model_copy(update={"negative": "Be rude."}))
    assert key(base()).endswith(f"-{VECTOR.code}")


def test_bundled_data_counts_except_what_a_key_holds_itself(tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(SOURCE / "data", data)
    code._data.cache_clear()
    before = code._data(data)
    for name, counts in (("personas/love.toml", False), ("plain.txt", True)):
        file = data / name
        file.write_text(file.read_text(encoding="utf-8") + "\n", encoding="utf-8")
        code._data.cache_clear()
        assert (code._data(data) != before) == counts


def test_a_package_without_readable_sources_goes_by_its_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(*_: object) -> str:
        raise FileNotFoundError

    code._made_by.cache_clear()
    monkeypatch.setattr(code, "digest_of", none)
    one = VECTOR.code
    code._made_by.cache_clear()
    monkeypatch.setattr(code, "version", lambda _: "9")
    assert VECTOR.code != one
    monkeypatch.undo()
    code._made_by.cache_clear()
    assert VECTOR.code != one


def test_a_stage_of_the_same_inputs_and_other_code_is_made_again_and_said_so(
    tmp_path: Path,
) -> None:
    marks: list[StageMark] = []
    store = Store(tmp_path, "run", notify=marks.append)

    def stage(key: str, value: str) -> str:
        return store.stage(
            "thing", 0, key, make=lambda: value,
            save=lambda folder, made: write_text(folder / "value.txt", made),
            load=lambda folder: (folder / "value.txt").read_text(),
        )  # fmt: skip

    assert stage("inputs-one", "old") == "old"
    assert stage("inputs-two", "new") == "new"
    assert stage("others-two", "else") == "else"
    assert stage("inputs-two", "never") == "new"
    assert [mark.made_again for mark in marks] == ["", "other code made the one on disk", "", ""]
    assert [mark.reused for mark in marks] == [False, False, False, True]


@pytest.mark.slow
def test_a_run_after_a_change_of_the_vectors_code_makes_it_and_what_differs_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"rounds": 1, "check": {"doses": ()}}
    test_loop.start(tmp_path, **settings)
    real = code.made_by

    def other(called: str) -> Callable[[tuple[str, ...]], str]:
        return lambda by: called if by == VECTOR.by else real(by)

    monkeypatch.setattr("steerheal.pipeline.stage.made_by", other("other"))
    test_loop.start(tmp_path, "again", **settings)
    marks = {mark.name: mark for mark in read_run(tmp_path / "again").stages}
    assert {name for name, mark in marks.items() if mark.made_again} == {"vector"}
    assert {name for name, mark in marks.items() if not mark.reused} == {"vector"}, "came out alike"

    def turned(*arguments: Any, **options: Any) -> SteeringVector:
        return -extract(*arguments, **options)

    monkeypatch.setattr("steerheal.pipeline.stage.made_by", other("third"))
    tiny.in_place_of(monkeypatch, "VECTOR", turned)
    test_loop.start(tmp_path, "turned", **settings)
    kept = {mark.name for mark in read_run(tmp_path / "turned").stages if mark.reused}
    assert kept == {"evaluate-base", "prompted", "show-base", "test-base", "calibrate"}
