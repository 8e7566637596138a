"""Shapes in signatures are checked while testing; nothing reaches a network."""

import os
import sys
from importlib import import_module
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent))

SHAPED = (
    "models",
    "measure.likelihood",
    "measure.forced_choice",
    "heal.barrier",
    "heal.batches",
    "heal.spectral",
    "heal.train",
    "state.fold",
    "state.control_vector",
    "steer.methods",
    "steer.states",
)
FIRST = ("beartype", "peft", "scipy.stats", "torch", "transformers.modeling_utils")
"""Imported before the hook: while it loads a module, what that imports is looked for compiled under
another name, and never found."""


def pytest_configure(config: pytest.Config) -> None:
    """Where tests run, shapes are checked; who only hands them out imports nothing."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        return
    for name in FIRST:
        import_module(name)
    hook = import_module("jaxtyping").install_import_hook
    hook([f"steerheal.{name}" for name in SHAPED], "beartype.beartype")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Whole runs go through what the quick tests check, a fifth faster without the checks."""
    config = import_module("jaxtyping").config
    config.update("jaxtyping_disable", item.get_closest_marker("slow") is not None)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Weights and vectors a test draws are the same every time it runs."""
    import_module("torch").manual_seed(0)


@pytest.fixture(autouse=True)
def pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn where tests look at them: they are most of a tiny run's time."""
    marks = {mark.name for mark in request.node.iter_markers()}
    if marks & {"slow", "long"} and "drawn" not in marks:
        monkeypatch.setattr("steerheal.report.draw.svg", lambda *_: '<svg viewBox="0 0 1 1"/>')
        monkeypatch.setattr("steerheal.report.draw.png", lambda _: b"")


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the folder shared/ is not beside the project")
    return folder
