"""The architecture: imports go one way, one door each, no torch for help."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from steerheal.cli import KINDS

SOURCE = Path(__file__).parents[1] / "src" / "steerheal"
NAMES = "__init__"
"""The public names, from wherever they are."""
ORDER = [
    {"errors"},
    {"tables", "extras"},
    {"prompts", "bounds", "line", "disk", "streams", "ranks"},
    {"config"},
    {"personas"},
    {"records"},
    {"numbers"},
    {"console", "store", "code"},
    {"models"},
    {"state"},
    {"measure"},
    {"steer", "heal", "report", "filter"},
    {"checks"},
    {"pipeline"},
    {"talk"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
"""Lower floors first; a module imports from its own room and from floors below it."""


@cache
def modules() -> dict[str, ast.Module]:
    return {
        ".".join(path.relative_to(SOURCE).with_suffix("").parts): ast.parse(path.read_text())
        for path in sorted(SOURCE.rglob("*.py"))
    }


def floor(name: str) -> int:
    room = name.split(".")[0]
    found = [level for level, group in enumerate(ORDER) if room in group]
    assert len(found) == 1, f"ORDER gives {room} {len(found)} floors; every room has one"
    return found[0]


def imported(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("steerheal"):
            base = node.module.removeprefix("steerheal").lstrip(".")
            found |= (
                {f"{base}.{alias.name}".strip(".") for alias in node.names} if not base else {base}
            )
        if isinstance(node, ast.Import):
            found |= {
                a.name.removeprefix("steerheal.")
                for a in node.names
                if a.name.startswith("steerheal.")
            }
    return found


@pytest.mark.parametrize("name", sorted(modules().keys() - {NAMES}))
def test_imports_only_go_down(name: str) -> None:
    for other in imported(modules()[name]):
        same = other.split(".")[0] == name.split(".")[0]
        assert same or floor(other) < floor(name), (name, other)


def test_every_room_with_a_floor_is_there() -> None:
    rooms = {name.split(".")[0] for name in modules()} - {NAMES}
    assert set().union(*ORDER) == rooms


READ_BY_REPORT = {
    "tables", "config", "personas", "records", "numbers", "store", "disk", "errors", "report",
}  # fmt: skip


def test_the_report_reads_records_and_never_a_model() -> None:
    for name, tree in modules().items():
        if name.startswith("report"):
            below = {
                other.split(".")[0] for other in imported(tree) if other != "measure.readings.table"
            }
            assert below <= READ_BY_REPORT, name
            assert "torch" not in ast.dump(tree)


@pytest.mark.parametrize(
    ("call", "homes"),
    [
        ("register_forward_hook", {"models.hooks"}),
        ("print", set()),
        ("mkdtemp", {"store", "heal.agreement"}),
    ],
)
def test_one_door_each(call: str, homes: set[str]) -> None:
    users = {
        name
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (
            getattr(node.func, "id", None) == call
            or (call != "print" and getattr(node.func, "attr", None) == call)
        )
    }
    assert users <= homes


HEAVY = {"torch", "transformers", "peft", "scipy", "numpy", "matplotlib", "huggingface_hub"}
"""What takes seconds to import together; the bare interpreter and the rest take a third of one."""


LIGHT = [["--help"], ["personas"], ["personas", "love"], ["run", "lvoe"]] + [
    [word, mistake] for word in KINDS for mistake in ("--help", "--no-such-option")
]


def test_help_personas_and_mistakes_on_the_line_import_nothing_heavy() -> None:
    program = f"""
import contextlib, io, sys
from steerheal.cli import main
for arguments in {LIGHT}:
    said = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(said):
        main(arguments)
    heavy = {HEAVY} & sys.modules.keys()
    assert not heavy, (arguments, heavy)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-500:]


def test_a_command_is_a_module_of_its_name_with_its_options_refusals_and_work() -> None:
    bases = {"Command", "ModelCommand", "ReadCommand"}
    found = {
        name.removeprefix("commands."): node
        for name, tree in modules().items()
        for node in tree.body
        if name.startswith("commands.")
        and isinstance(node, ast.ClassDef)
        and bases & {getattr(base, "id", None) for base in node.bases}
        and node.name not in bases
    }
    assert found.keys() == KINDS.keys()
    for word, node in found.items():
        assert KINDS[word].word() == word and KINDS[word].__name__ == node.name
        assert "do" in {item.name for item in node.body if isinstance(item, ast.FunctionDef)}, word


LONGEST = 60
"""Lines of a function that can still be read at once."""


def test_functions_are_short_enough_to_be_read_at_once() -> None:
    longer = {
        f"{name}.{node.name}"
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= LONGEST
    }
    assert not longer
