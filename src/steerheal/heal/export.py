"""Exports a gated history: one rank-concatenated PEFT adapter, or a merged model; both verified."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from steerheal.disk import whole_folder
from steerheal.heal.adapter import untouched
from steerheal.models.chat import prompt_ids
from steerheal.models.load import quiet
from steerheal.models.model import ChatModel
from steerheal.state.fold import Gated, concatenated, folded, merged


class Exported(NamedTuple):
    """What was written, and how far its logits are from the gated model's."""

    what: str
    difference: float
    """Largest absolute logit difference over all positions of the probes."""
    scale: float
    """Largest absolute logit of the gated model."""


def export_peft(
    chat: ChatModel, history: Sequence[Gated], out: Path, probes: Sequence[str]
) -> Exported:
    """Writes the history as one PEFT adapter, loads it back through PEFT, and compares logits.

    Raises:
        UserError: nothing to export, or the folder cannot be written.
    """
    adapter = concatenated(history)
    expected = _gated_logits(chat, history, probes)
    with whole_folder(out) as work, quiet():
        adapter.trained_by(chat).save(work)
        with untouched(chat, list(adapter.pairs)), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT's own use of older names
            PeftModel.from_pretrained(chat.net, str(work)).eval()
            found = _logits(chat.net, chat, probes)
    return _compared(f"PEFT adapter (rank {adapter.rank})", expected, found)


def export_merged(
    chat: ChatModel, history: Sequence[Gated], out: Path, probes: Sequence[str]
) -> Exported:
    """Writes the model with the history in its weights, loads it back, and compares logits.

    In half precision the weights round part of the history away, and the logits differ by that.

    Raises:
        UserError: the folder cannot be written.
    """
    expected = _gated_logits(chat, history, probes)
    with whole_folder(out) as work, quiet():
        with merged(chat, history):
            chat.net.save_pretrained(work)
        chat.tokenizer.save_pretrained(work)
        again = AutoModelForCausalLM.from_pretrained(work, dtype=chat.net.dtype)
        again.to(device=chat.device)  # pyright: ignore[reportCallIssue]
        found = _logits(again.eval(), chat, probes)
    return _compared("merged model", expected, found)


def _gated_logits(
    chat: ChatModel, history: Sequence[Gated], probes: Sequence[str]
) -> list[Float[Tensor, "_ V"]]:
    with folded(chat, history):
        return _logits(chat.net, chat, probes)


@torch.no_grad()
def _logits(
    net: PreTrainedModel, chat: ChatModel, probes: Sequence[str]
) -> list[Float[Tensor, "_ V"]]:
    rows = [torch.tensor([prompt_ids(chat, probe)], device=chat.device) for probe in probes]
    return [net(input_ids=ids).logits[0].float() for ids in rows]


def _compared(what: str, expected: Sequence[Tensor], found: Sequence[Tensor]) -> Exported:
    gap = max((a - b).abs().max().item() for a, b in zip(expected, found, strict=True))
    return Exported(what, gap, max(a.abs().max().item() for a in expected))
