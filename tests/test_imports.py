"""The architecture: imports go one way, one door each, no torch for help."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "steerheal"
NAMES = "__init__"
"""The public names, from wherever they are."""
ORDER = [
    {"errors"},
    {"prompts", "bounds", "line", "disk"},
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


def test_the_report_reads_records_and_never_a_model() -> None:
    for name, tree in modules().items():
        if name.startswith("report"):
            below = {other.split(".")[0] for other in imported(tree)}
            assert below <= {"records", "numbers", "store", "disk", "errors", "report"}, name
            assert "torch" not in ast.dump(tree)


@pytest.mark.parametrize(
    ("call", "homes"),
    [
        ("register_forward_hook", {"models.hooks"}),
        ("print", set()),
        ("mkdtemp", {"store", "heal.export"}),
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


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["personas"], ["run", "lvoe"]]
)
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom steerheal.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        f"sys.exit(bool({HEAVY} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-500:]
