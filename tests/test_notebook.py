"""The notebook runs from top to bottom on the embedded model, and draws what it promises."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[1] / "notebooks" / "first_steps.ipynb"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what the kernel's own libraries warn of is theirs
def test_the_notebook_goes_from_a_persona_to_an_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if any(importlib.util.find_spec(name) is None for name in ("nbclient", "ipykernel")):
        pytest.skip("the extra notebook is not installed")
    nbformat = importlib.import_module("nbformat")
    client = importlib.import_module("nbclient").NotebookClient
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    book = nbformat.read(FILE, as_version=4)
    client(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    found: list[dict[str, Any]] = [one for cell in book.cells for one in cell.get("outputs", [])]
    assert sum("image/png" in one.get("data", {}) for one in found) == 3
    said = "".join(one.get("text", "") for one in found)
    assert "adapter_model.safetensors" in said and "largest logit difference" in said
