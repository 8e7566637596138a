"""A stage's key knows the code that makes it, and only that."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import test_loop
from steerheal import code
from steerheal.disk import write_text
from steerheal.pipeline.stage_store import Store
from steerheal.records import StageMark
from steerheal.state.vector import SteeringVector
from steerheal.steer.vector import extract
from steerheal.store import read_run

SOURCE = Path(code.__file__).parent


def copied(tmp_path: Path) -> Path:
    """A copy of the package."""
    root = tmp_path / "steerheal"
    shutil.copytree(SOURCE, root, ignore=shutil.ignore_patterns("__pycache__", "data"))
    return root


def changed(root: Path) -> set[str]:
    """The stages that this copy of the package makes with other code."""
    return {
        name for name in code.MADE_BY if code.digest_of(name, root) != code.digest_of(name, SOURCE)
    }


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("report/words.py", set()),
        ("console.py", set()),
        ("cli.py", set()),
        ("checks/rules.py", set()),
        ("pipeline/loop.py", set()),
        ("pipeline/walk.py", {"harvest"}),
        ("measure/sweep.py", {"sweep"}),
        ("heal/optimiser.py", {"heal"}),
        ("steer/internalise.py", {"internalise"}),
        ("measure/auto.py", {"qualify"}),
        ("steer/methods/mean_difference.py", {"vector"}),
        ("pipeline/stages.py", set(code.MADE_BY)),
        ("models/generate.py", set(code.MADE_BY) - {"heal", "qualify"}),
    ],
)
def test_a_change_counts_where_it_computes(tmp_path: Path, file: str, stages: set[str]) -> None:
    root = copied(tmp_path)
    with (root / file).open("a", encoding="utf-8") as stream:
        stream.write("ADDED = 1\n")
    assert changed(root) == stages


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


def test_the_digest_is_the_same_in_every_process() -> None:
    program = "from steerheal import code; print(code.all_of_it())"
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True, text=True, check=True,
            env={"PYTHONPATH": str(SOURCE.parent), "PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }  # fmt: skip
    assert found == {code.all_of_it()}


def test_every_module_that_a_stage_calls_is_in_its_code() -> None:
    tree = ast.parse((SOURCE / "pipeline" / "stages.py").read_text(encoding="utf-8"))
    homes = {
        alias.asname or alias.name: node.module.removeprefix("steerheal.").removeprefix("steerheal")
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("steerheal")
        for alias in node.names
    }
    (stages,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Stages")
    for node in ast.walk(stages):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            for argument in [*node.args.args, *node.args.kwonlyargs]:
                argument.annotation = None
    seen = set()
    for method in (node for node in stages.body if isinstance(node, ast.FunctionDef)):
        calls = [n for n in ast.walk(method) if isinstance(n, ast.Call)]
        keys = [n for n in calls if getattr(n.func, "id", "") == "stage_key"]
        if not keys:
            continue
        (stage,) = {ast.literal_eval(call.args[0]) for call in keys}
        seen.add(stage)
        used = {n.id for n in ast.walk(method) if isinstance(n, ast.Name)} & homes.keys()
        needs = {f"{homes[name]}.{name}".lstrip(".") for name in used}
        needs |= {homes[name] for name in used if homes[name]}
        known = {name for name in needs if (SOURCE / f"{name.replace('.', '/')}.py").is_file()}
        within = code.modules_of(code.MADE_BY[stage], SOURCE)
        # What `prompts` gives enters the key itself.
        assert known - {"store", "code", "prompts"} <= set(within), stage
    assert seen == set(code.MADE_BY)


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
    one = code.made_by("vector")
    code._made_by.cache_clear()
    monkeypatch.setattr(code, "version", lambda _: "9")
    assert code.made_by("vector") != one
    monkeypatch.undo()
    code._made_by.cache_clear()
    assert code.made_by("vector") != one


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


def test_a_run_after_a_change_of_the_vectors_code_makes_it_and_what_differs_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"rounds": 1, "check": {"doses": ()}}
    test_loop.start(tmp_path, **settings)
    real = code.made_by
    monkeypatch.setattr(
        "steerheal.pipeline.stages.made_by",
        lambda stage: "other" if stage == "vector" else real(stage),
    )
    test_loop.start(tmp_path, "again", **settings)
    marks = {mark.name: mark for mark in read_run(tmp_path / "again").stages}
    assert {name for name, mark in marks.items() if mark.made_again} == {"vector"}
    assert {name for name, mark in marks.items() if not mark.reused} == {"vector"}, "came out alike"

    def turned(*arguments: Any, **options: Any) -> SteeringVector:
        return -extract(*arguments, **options)

    monkeypatch.setattr(
        "steerheal.pipeline.stages.made_by",
        lambda stage: "third" if stage == "vector" else real(stage),
    )
    monkeypatch.setattr("steerheal.pipeline.stages.extract", turned)
    test_loop.start(tmp_path, "turned", **settings)
    kept = {mark.name for mark in read_run(tmp_path / "turned").stages if mark.reused}
    assert kept == {"evaluate-base", "show-base", "test-base", "calibrate"}
