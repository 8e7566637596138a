"""Loads a chat model: the embedded one, a hub id, a local folder or a GGUF file.

In: `ModelSettings`. Out: a `ChatModel`, which knows its decoder blocks, its output head and its
chat template, and nothing of steering.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hub_logging

from steerheal.config import ModelSettings
from steerheal.errors import UserError, first_line
from steerheal.models.fingerprint import fingerprint as _fingerprint
from steerheal.models.gguf import EMBEDDED_NAME, embedded_file, open_gguf
from steerheal.models.model import ChatModel, find_blocks


def load(settings: ModelSettings) -> ChatModel:
    """The model that the settings name, ready for inference.

    Raises:
        UserError: not found, unreadable, truncated, no chat template, or no decoder blocks.
    """
    device, dtype = pick_device(settings.device), settings.dtype
    weights = _pick_dtype(dtype, device)
    with quiet():
        net, tokenizer, name = _open(settings, weights)
    return wrap(net, tokenizer, name=name, device=device)


def wrap(
    net: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    device: torch.device | None = None,
) -> ChatModel:
    """A `ChatModel` around a loaded model; checks that everything a stage needs is there.

    The weights move to the device, if one is given, once they are fingerprinted.

    Raises:
        UserError: no chat template, no decoder blocks, or logits that the head cannot reproduce.
    """
    if not tokenizer.chat_template:
        raise UserError(
            f"{name} has no chat template. Use an instruction-tuned model, or set "
            "tokenizer.chat_template in its tokenizer_config.json."
        )
    net.eval().requires_grad_(False)
    digest = _fingerprint(net, tokenizer)  # where the weights were read to, before they move
    find_blocks(net)
    if device is not None:
        net.to(device)  # pyright: ignore[reportArgumentType]
    chat = ChatModel(net, tokenizer, name, digest, _system_role(tokenizer))
    _check_head(chat)
    return chat


def pick_device(name: str) -> torch.device:
    """The named device, or the fastest one there is.

    Raises:
        UserError: unknown or absent device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"Device {name!r} cannot be used ({str(error).splitlines()[0]}). Use auto or cpu."
        ) from error
    return device


def _pick_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return cast(torch.dtype, getattr(torch, name))


def _open(
    settings: ModelSettings, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    if not settings.name:
        return open_gguf(embedded_file(), dtype, EMBEDDED_NAME)
    path = Path(settings.name).expanduser()
    if path.is_file():
        return open_gguf(path, dtype, path.name)
    if not path.is_dir() and settings.name.endswith(".gguf"):
        raise UserError(f"There is no GGUF file {settings.name}.")
    return _open_pretrained(settings, dtype)


def _open_pretrained(
    settings: ModelSettings, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    source = (
        str(Path(settings.name).expanduser())
        if Path(settings.name).expanduser().is_dir()
        else settings.name
    )
    options: dict[str, Any] = {
        "revision": settings.revision,
        "trust_remote_code": settings.trust_remote_code,
    }
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        net = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, **options
        )
    except Exception as error:
        raise UserError(
            f"Cannot load model {settings.name!r}: {first_line(error)} "
            "Give nothing (the embedded model), a hub id, a local folder or a GGUF file."
        ) from error
    return net, tokenizer, settings.name


def _system_role(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a system message reaches the templated text as a message of its own."""
    probe = "steerheal-system-probe"
    messages = [{"role": "system", "content": probe}, {"role": "user", "content": "_"}]
    try:
        text = cast(
            str,
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),
        )
    except Exception:  # noqa: BLE001  templates refuse a system role by raising whatever they like
        return False
    return probe in text


@torch.no_grad()
def _check_head(chat: ChatModel) -> None:
    """The head applied to the decoder's output must give the model's own logits."""
    ids = torch.tensor([[chat.end_of_turn()] * 3], device=chat.device)
    whole = chat.net(input_ids=ids).logits.float()
    ours = chat.logits(chat.hidden(ids))
    gap = (whole - ours).abs().max().item()
    scale = whole.abs().max().item()
    if not gap <= 1e-2 * max(1.0, scale) and torch.isfinite(whole).all():
        raise UserError(
            f"{chat.name} ({type(chat.net).__name__}) treats its logits in a way that is not "
            f"supported (largest difference {gap:.3g})."
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Loading without the libraries' own bars and remarks; errors still come through."""
    level, bars = hub_logging.get_verbosity(), hub_logging.is_progress_bar_enabled()
    root = logging.getLogger("transformers")
    hub_logging.set_verbosity_error()
    hub_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hub_logging.set_verbosity(level)
        root.setLevel(level)
        if bars:
            hub_logging.enable_progress_bar()
