"""The architecture: imports go one way, one door each, no torch for help."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "steerheal"
ORDER = [
    {"errors"},
    {"prompts", "bounds", "line", "disk"},
    {"config", "claims"},
    {"personas"},
    {"records"},
    {"numbers"},
    {"console", "store", "need", "code", "helping"},
    {"models"},
    {"state"},
    {"measure"},
    {"steer", "heal", "report", "filter"},
    {"checks"},
    {"pipeline"},
    {"history", "plan", "closing"},
    {"asking", "listing", "commands", "scan", "seeds"},
    {"reading", "before"},
]
"""Lower floors first; a module imports from its own package and from floors below it."""


@cache
def modules() -> dict[str, ast.Module]:
    return {
        ".".join(path.relative_to(SOURCE).with_suffix("").parts): ast.parse(path.read_text())
        for path in sorted(SOURCE.rglob("*.py"))
    }


def floor(name: str) -> int | None:
    for prefix in (name, name.split(".")[0]):
        for level, group in enumerate(ORDER):
            if prefix in group:
                return level
    return None


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


@pytest.mark.parametrize("name", [name for name in modules() if floor(name) is not None])
def test_imports_only_go_down(name: str) -> None:
    package = name.split(".")[0]
    mine = floor(name)
    assert mine is not None
    for other in imported(modules()[name]):
        same = other.split(".")[0] == package
        theirs = floor(other)
        assert same or other == "cli" or (theirs is not None and theirs < mine), (
            name,
            other,
        )


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
