"""What was exported, as it is loaded again: its logits beside those that were to be written."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from steerheal.errors import UserError
from steerheal.heal import elsewhere
from steerheal.models.chat import prompt_ids
from steerheal.models.model import ChatModel
from steerheal.models.quantise import options_of
from steerheal.state.adapter import Adapter
from steerheal.state.fold import Gated, folded

AGREE, STEPS = 1e-4, 8
"""How far logits may be from what was to be written, as a share of the largest: this, or so many
rounding steps of the model's precision where that is more."""

Logits = list[Float[Tensor, "_ V"]]


class Exported(NamedTuple):
    """What was written, and how far its logits are from the gated model's."""

    what: str
    difference: float
    """Largest absolute logit difference over all positions of the probes."""
    scale: float
    """Largest absolute logit of the gated model."""
    rank: int = 0
    """Of an adapter."""


def logits_elsewhere(
    chat: ChatModel,
    probes: Sequence[str],
    *,
    model: Path | None = None,
    adapter: Path | None = None,
    **more: object,
) -> Logits:
    """Logits as a process without this program reads them, from files alone; `more` is for these.

    Raises:
        UserError: it cannot load them.
    """
    config: Any = chat.net.config
    options: dict[str, object] = {"local_files_only": True, **options_of(chat), **more}
    if model is None and (commit := getattr(config, "_commit_hash", None)):
        options["revision"] = commit
    if type(chat.net).__module__.startswith("transformers_modules."):
        options["trust_remote_code"] = True
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "logits.safetensors"
        asked = {
            "model": str((model or Path(config.name_or_path)).absolute())
            if model or Path(config.name_or_path).exists()
            else config.name_or_path,
            "options": options,
            "dtype": str(chat.net.dtype).removeprefix("torch."),
            "device": str(chat.device),
            "adapter": str(adapter.absolute()) if adapter else "",
            "rows": [prompt_ids(chat, probe) for probe in probes],
            "out": str(out),
        }
        line = [sys.executable, "-I", elsewhere.__file__]
        done = subprocess.run(
            line, input=json.dumps(asked), text=True, capture_output=True, check=False
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["it said nothing"]
            raise UserError(f"What was exported does not load in a process of its own: {said[-1]}")
        rows = load_file(out)
    return [rows[str(i)] for i in range(len(probes))]


def gated_logits(chat: ChatModel, history: Sequence[Gated], probes: Sequence[str]) -> Logits:
    with folded(chat, history):
        return logits_of(chat.net, chat, probes)


@torch.no_grad()
def logits_of(net: PreTrainedModel, chat: ChatModel, probes: Sequence[str]) -> Logits:
    rows = [torch.tensor([prompt_ids(chat, probe)], device=chat.device) for probe in probes]
    return [net(input_ids=ids).logits[0].float().cpu() for ids in rows]


def verified(
    chat: ChatModel,
    history: Sequence[Gated],
    written: Adapter,
    found: Logits,
    *,
    probes: Sequence[str],
    what: str,
) -> Exported:
    """What was loaded, held against what was to be written, and compared with the history."""
    refuse_apart(chat, gated_logits(chat, [Gated(written)], probes), found, what)
    made = compared(what, gated_logits(chat, history, probes), found)
    return made._replace(rank=written.rank)


def refuse_apart(
    chat: ChatModel,
    expected: Logits,
    found: Logits,
    what: str,
    *,
    written: torch.dtype | None = None,
) -> None:
    """Refuses an export that does not load as it was written, in the model's dtype or another.

    Raises:
        UserError: logits farther apart than rounding.
    """
    made = compared(what, expected, found)
    coarsest = max(torch.finfo(dtype).eps for dtype in (chat.net.dtype, written or chat.net.dtype))
    most = max(AGREE, STEPS * coarsest) * max(1.0, made.scale)
    if not made.difference <= most:
        raise UserError(
            f"The {what} does not load as it was written: its logits differ by up to "
            f"{made.difference:.2e}, and {most:.1e} is allowed. It was taken away again."
        )


def compared(what: str, expected: Logits, found: Logits) -> Exported:
    gap = max((a - b).abs().max().item() for a, b in zip(expected, found, strict=True))
    return Exported(what, gap, max(a.abs().max().item() for a in expected))
