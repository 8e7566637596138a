"""One digest of everything of a model that can change a result."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

ALGORITHM = "sha256"
"""The fastest of hashlib's on processors with SHA instructions, and fast enough on others."""
PIECE = 16 << 20
"""Bytes that one thread digests at a time, so that one large matrix keeps all of them busy."""
LENGTH = 24
PLACES = {
    "_name_or_path",
    "name_or_path",
    "_model_name_or_path",
    "transformers_version",
    "is_local",
    "local_files_only",
}
"""Entries that say where a model lies, or who wrote it, and nothing of what it does."""


def fingerprint(net: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, shown: str = "") -> str:
    """Digest of architecture, generation config, tokenizer, template, and every weight's bytes.

    It does not depend on the folder that the model was read from.

    Args:
        net: The model.
        tokenizer: Its tokenizer.
        shown: Digest of what the template prints at the run's date with the run's variables.
    """
    digest = hashlib.new(ALGORITHM)
    configs = [net.config.to_diff_dict()]
    if net.generation_config is not None:
        configs.append(net.generation_config.to_diff_dict())
    digest.update(_plain([type(net).__name__, *configs]))
    for name, content in _tokenizer_files(tokenizer):
        digest.update(f"{name}:{len(content)}:".encode() + content)
    digest.update(shown.encode())
    digest.update(_plain(weights_digests(net)))
    return digest.hexdigest()[:LENGTH]


def weights_digests(net: PreTrainedModel) -> dict[str, list[Any]]:
    """Type, shape and digest of every parameter and persistent buffer, tied ones digested once."""
    state: dict[str, Tensor] = net.state_dict()
    homes = {name: _home(tensor) for name, tensor in state.items()}
    distinct = {homes[name]: tensor.detach() for name, tensor in state.items()}
    pieces = [(home, piece) for home, tensor in distinct.items() for piece in _pieces(tensor)]
    found = {home: hashlib.new(ALGORITHM) for home in distinct}
    # hashlib lets go of the interpreter while it digests, so that threads share the work.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = pool.map(lambda item: _digest(item[1]), pieces)
        for (home, _), one in zip(pieces, digests, strict=True):
            found[home].update(one)
    return {
        name: [str(tensor.dtype), list(tensor.shape), found[homes[name]].hexdigest()]
        for name, tensor in state.items()
    }


def _home(tensor: Tensor) -> tuple[Any, ...]:
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def _pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """The tensor in row-major order, cut; views where it is contiguous."""
    return tensor.reshape(-1).split(max(1, PIECE // tensor.element_size()))


def _digest(piece: Tensor) -> bytes:
    flat: Any = piece.cpu().contiguous().view(torch.uint8).numpy()
    return hashlib.new(ALGORITHM, flat).digest()


def _tokenizer_files(tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, bytes]]:
    """All that the tokenizer saves of itself, template included, without where it was found."""
    with tempfile.TemporaryDirectory() as work:
        tokenizer.save_pretrained(work)
        for path in sorted(Path(work).rglob("*")):
            if path.is_file():
                content = path.read_bytes()
                if path.name == "tokenizer_config.json":
                    content = _plain(json.loads(content))
                yield path.name, content


def _plain(value: Any) -> bytes:
    return json.dumps(_placeless(value), sort_keys=True, default=repr).encode()


def _placeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _placeless(v) for k, v in value.items() if k not in PLACES}
    if isinstance(value, list | tuple):
        return [_placeless(item) for item in value]
    return value
