"""Shapes in signatures are checked while testing; nothing reaches a network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import config, install_import_hook

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
install_import_hook([f"steerheal.{name}" for name in SHAPED], "beartype.beartype")

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Whole runs go through what the quick tests check, a fifth faster without the checks."""
    config.update("jaxtyping_disable", item.get_closest_marker("slow") is not None)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Weights and vectors a test draws are the same every time it runs."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the folder shared/ is not beside the project")
    return folder
