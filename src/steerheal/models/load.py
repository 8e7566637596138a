"""Loads a chat model: the embedded one, a hub id, a local folder or a GGUF file.

In: `ModelSettings`. Out: a `ChatModel`, which knows its decoder blocks, its output head and its
chat template, and nothing of steering.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hub_logging

from steerheal.config import ModelSettings
from steerheal.errors import UserError, first_line
from steerheal.models import precision, quantise, shard, sound, weights
from steerheal.models.batch import free_bytes
from steerheal.models.ends import ends_of_turn
from steerheal.models.fingerprint import fingerprint as _fingerprint
from steerheal.models.gguf import EMBEDDED_NAME, embedded_file, open_gguf
from steerheal.models.gpu_share import take_share
from steerheal.models.hub import ADVICE, only_cached, refuse_no_id
from steerheal.models.model import ChatModel, find_blocks
from steerheal.models.size import parameters_in, refuse_too_large, weights_bytes
from steerheal.models.template import Template, frozen
from steerheal.models.trial import refuse_cache
from steerheal.ranks import in_turn, processes

NONE = ModelSettings().quantize
"""Weights as they are."""


def load(settings: ModelSettings) -> ChatModel:
    """The model that the settings name, ready for inference.

    Raises:
        UserError: not found, unreadable, truncated, no chat template, or no decoder blocks.
    """
    device = pick_device(settings.device)
    take_share(device)
    dtype = _pick_dtype(settings, device)
    mesh, packing = None, {}
    if shared := settings.shard and processes() > 1:
        mesh = shard.mesh_over(device)
    if settings.quantize != NONE:
        quantise.refuse_unable(device)
        assert dtype is not None, "four bits need a GPU, whose precision is known"
        packing = quantise.options(dtype, device)
    # In turn, since the machine's memory may not hold the whole model once for every process.
    with in_turn() if shared else nullcontext():
        _refuse_too_large(settings, device, dtype)
        with quiet():
            net, tokenizer, name = _open(settings, dtype, packing)
        chat = _wrapped(
            net,
            tokenizer,
            name=name,
            device=None if packing else device,
            mesh=mesh,
            date=settings.date,
            template_vars=settings.template_vars,
        )
    return replace(_tried(chat), origin=_origin(settings))


def _origin(settings: ModelSettings) -> str:
    """Which weights they are, if quantising left others than the name says."""
    path = Path(settings.name).expanduser() if settings.name else embedded_file()
    file = f"the de-quantised weights of {path.name}" if path.is_file() else ""
    if settings.quantize == NONE:
        return file
    whole = file or f"the weights of {path.name if path.exists() else settings.name}"
    return f"{whole}, in {settings.quantize}"


def wrap(
    net: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    device: torch.device | None = None,
    date: str = "",
    template_vars: Mapping[str, Any] | None = None,
) -> ChatModel:
    """A `ChatModel` around a loaded model; checks that everything a stage needs is there.

    Args:
        net: The model.
        tokenizer: Its tokenizer, with a chat template.
        name: What the user would call it.
        device: Where the weights move, if anywhere, once they are fingerprinted.
        date: ISO date or time that the template's clock stands at; now when empty.
        template_vars: What the template is given beside the conversation.

    Raises:
        UserError: no chat template, a variable that it does not read, no decoder blocks, or logits
            that the head cannot reproduce.
    """
    return _tried(
        _wrapped(net, tokenizer, name=name, device=device, date=date, template_vars=template_vars)
    )


def _wrapped(
    net: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    device: torch.device | None,
    mesh: DeviceMesh | None = None,
    date: str,
    template_vars: Mapping[str, Any] | None,
) -> ChatModel:
    """What is there for a stage, before anything is read with it; see `wrap`.

    Over the devices of a mesh, if there is one, of which `device` is this process's.
    """
    own = tokenizer.chat_template
    if not own or (isinstance(own, dict) and "default" not in own):
        raise UserError(
            f"{name} has no chat template. Use an instruction-tuned model, or give one with "
            "--model.template FILE."
        )
    find_blocks(net)
    sound.refuse_vocabulary(net, tokenizer, name)
    weights.refuse_not_finite(net, name)
    template = frozen(tokenizer, name=name, date=date, variables=template_vars)
    sound.refuse_template(lambda said: template.render([("user", said)], reply=True), name)
    ends = ends_of_turn(
        net, tokenizer, lambda turns: template.render(turns, reply=False), name=name
    )
    net.eval().requires_grad_(False)
    # Where the weights were read to, before they move.
    digest = _fingerprint(net, tokenizer, template.digest())
    if mesh is not None:
        shard.spread(net, mesh, cast(torch.device, device))
    elif device is not None:
        net.to(device)  # pyright: ignore[reportArgumentType]
    return ChatModel(net, tokenizer, name, digest, _system_role(template), template, ends, "")


def _tried(chat: ChatModel) -> ChatModel:
    sound.refuse_head(chat)
    refuse_cache(chat)
    return chat


def pick_device(name: str) -> torch.device:
    """The named device, or the fastest one there is.

    Raises:
        UserError: unknown or absent device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            # Of several processes each is given one of its own.
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"Device {name!r} cannot be used ({str(error).splitlines()[0]}). Use auto or cpu."
        ) from error
    return device


def _pick_dtype(settings: ModelSettings, device: torch.device) -> torch.dtype | None:
    """The precision; None where it follows from how large the model proves to be."""
    if settings.dtype != "auto":
        return cast(torch.dtype, getattr(torch, settings.dtype))
    if device.type == "cuda":
        return torch.bfloat16
    by_size = device.type == "cpu" and precision.multiplies_bfloat16()
    return None if by_size else torch.float32


def _refuse_too_large(
    settings: ModelSettings, device: torch.device, dtype: torch.dtype | None
) -> None:
    """Weights are read into main memory first, and from there go to the device."""
    path = Path(settings.name or ".").expanduser()
    if not settings.name:
        return
    # No weights of a GGUF file are less in memory than in the file.
    least = float(path.stat().st_size) if path.is_file() else 0.0
    count = parameters_in(path) or 0
    name = str(dtype or precision.by_size(count)).removeprefix("torch.")
    places = {torch.device("cpu"): 1, device: 1}
    if count:
        packed = count if settings.quantize != NONE else 0
        least = weights_bytes(count, name, packed)
        if packed:  # matrix by matrix, through main memory
            places = {device: 1}
    if settings.shard and device.type != "cpu":
        places[device] = processes()
    for place, shares in places.items():
        refuse_too_large(settings.name, least, name if count else "", free_bytes(place), shares)


def _open(
    settings: ModelSettings, dtype: torch.dtype | None, packing: Mapping[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    template = settings.template_text()
    if not settings.name:
        return open_gguf(embedded_file(), dtype, EMBEDDED_NAME, template=template, **packing)
    path = Path(settings.name).expanduser()
    if path.is_file():
        return open_gguf(path, dtype, path.name, template=template, **packing)
    net, tokenizer = _open_pretrained(path, settings, dtype, packing)
    tokenizer.chat_template = template or tokenizer.chat_template
    return net, tokenizer, settings.name


def _open_pretrained(
    path: Path, settings: ModelSettings, dtype: torch.dtype | None, packing: Mapping[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    options: dict[str, Any] = {
        "revision": settings.revision,
        "trust_remote_code": settings.trust_remote_code,
    }
    source = str(path)
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f"The folder {settings.name} holds no model: no config.json. {ADVICE}")
    if not path.is_dir():
        source = settings.name
        refuse_no_id(source)
        options["local_files_only"] = only_cached(source, settings.revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        net = weights.read(
            source, name=settings.name, dtype=dtype, use_safetensors=True, **options, **packing
        )
    except UserError:
        raise
    except Exception as error:
        own_code = "trust_remote_code" in str(error) and not settings.trust_remote_code
        advice = (
            "It brings its own Python code, which runs only with --model.trust-remote-code: read "
            "that code first."
            if own_code
            else ADVICE
        )
        raise UserError(
            f"Cannot load model {settings.name!r}: {first_line(error)} {advice}"
        ) from error
    return net, tokenizer


def _system_role(template: Template) -> bool:
    """Whether a system message reaches the templated text as a message of its own."""
    probe = "steerheal-system-probe"
    try:
        text = template.render([("system", probe), ("user", "_")], reply=True)
    except Exception:  # noqa: BLE001  templates refuse a system role by raising whatever they like
        return False
    return probe in text


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
