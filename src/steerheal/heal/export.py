"""Exports a gated history: as an adapter or a model, for PEFT or llama.cpp; or a vector.

Everything is loaded again before it counts as written: adapters and models by their logits, here or
in a process that imports nothing of ours, GGUF files tensor by tensor. What does not agree with
what was to be written is taken away.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from steerheal.disk import whole_folder
from steerheal.errors import UserError
from steerheal.heal.adapter import untouched
from steerheal.heal.agreement import (
    Exported,
    Logits,
    compared,
    gated_logits,
    logits_elsewhere,
    logits_of,
    refuse_apart,
    verified,
)
from steerheal.models.engines.biases import SWITCH
from steerheal.models.engines.vllm import RANKS, room_for
from steerheal.models.load import quiet
from steerheal.models.model import ChatModel
from steerheal.state.adapter import Adapter
from steerheal.state.bias import biased
from steerheal.state.compress import recompressed
from steerheal.state.fold import Gated, concatenated, merged
from steerheal.state.gguf_lora import read_gguf_lora, write_gguf_lora
from steerheal.state.gguf_model import rewrite_gguf
from steerheal.state.vector import SteeringVector

ADAPTER_FILE, VECTOR_FILE, MODEL_FILE = "adapter.gguf", "vector.gguf", "model.gguf"
SAME = 1e-5
"""The same for the weights in a GGUF file, which are float32."""

Card = Callable[[str], str]
"""The model card of what is written, from its name in words; empty for none."""


def no_card(_: str) -> str:
    """No model card."""
    return ""


def export_peft(
    chat: ChatModel,
    history: Sequence[Gated],
    out: Path,
    probes: Sequence[str],
    *,
    rank: int = 0,
    card: Card = no_card,
    fresh: bool = False,
) -> Exported:
    """Writes the history as one PEFT adapter, loads it back through PEFT, and compares logits.

    Args:
        chat: The base.
        history: Adapters at their gates.
        out: The folder that is made.
        probes: User messages whose logits are compared.
        rank: Of the adapter; 0 is the sum of the ranks of the history.
        card: What README.md says.
        fresh: Load it in a process without this program, as it can be where the model is on disk.

    Raises:
        UserError: nothing to export, a folder that cannot be written, or logits that differ.
    """
    adapter, what = _joined(history, rank, "PEFT adapter")
    with whole_folder(out) as work, quiet():
        adapter.trained_by(chat).save(work)
        _write_card(work, card(what))
        found = (
            logits_elsewhere(chat, probes, adapter=work)
            if fresh
            else _with_peft(chat, adapter, work, probes)
        )
        return verified(chat, history, adapter, found, probes=probes, what=what)


def export_merged(
    chat: ChatModel,
    history: Sequence[Gated],
    out: Path,
    probes: Sequence[str],
    *,
    card: Card = no_card,
    fresh: bool = False,
) -> Exported:
    """Writes the model with the history in its weights, loads it back, and compares logits.

    In half precision the weights round part of the history away, and the logits differ by that.

    Raises:
        UserError: quantised weights, a folder that cannot be written, or logits that differ.
    """
    what = "merged model"
    with whole_folder(out) as work, quiet():
        with merged(chat, history):
            chat.net.save_pretrained(work)
            expected = logits_of(chat.net, chat, probes)
        chat.tokenizer.save_pretrained(work)
        _write_card(work, card(what))
        if fresh:
            found = logits_elsewhere(chat, probes, model=work)
        else:
            found = logits_of(_loaded(chat, work), chat, probes)
        refuse_apart(chat, expected, found, what)
        return compared(what, gated_logits(chat, history, probes), found)


def export_bias(
    chat: ChatModel,
    history: Sequence[Gated],
    vector: SteeringVector,
    out: Path,
    probes: Sequence[str],
    *,
    dose: float = 1.0,
    card: Card = no_card,
) -> Exported:
    """Writes the steered model as one without a hook: history in the weights, vector as biases.

    The configuration's `mlp_bias` gives every projection of an MLP a bias, which is 0 but for the
    vector: transformers and vLLM read it so.

    Raises:
        UserError: quantised weights, a model without that switch, a vector that is no bias, a
            folder that cannot be written, or logits that differ.
    """
    what, config = f"model with its vector as biases, dose {dose:g}", chat.net.config
    if getattr(config, SWITCH, None) is None:
        raise UserError(
            f"{chat.name} ({config.model_type}) has no {SWITCH}, which lets a checkpoint hold the "
            "vector: Llama has it. Export --format vector or merged instead."
        )
    with whole_folder(out) as work, quiet(), merged(chat, history):
        with vector.applied(chat, dose):
            expected = logits_of(chat.net, chat, probes)
        with biased(chat, vector, dose):
            state = chat.net.state_dict()
        missing = {
            name.removesuffix("weight") + "bias": weight.new_zeros(len(weight))
            for name, weight in state.items()
            if ".mlp." in name and name.endswith("_proj.weight")
        }
        own = getattr(config, SWITCH)
        setattr(config, SWITCH, True)
        try:
            chat.net.save_pretrained(work, state_dict=missing | state)
        finally:
            setattr(config, SWITCH, own)
        chat.tokenizer.save_pretrained(work)
        _write_card(work, card(what))
        found = logits_of(_loaded(chat, work), chat, probes)
        refuse_apart(chat, expected, found, what)
        return compared(what, expected, found)


def _loaded(chat: ChatModel, folder: Path) -> PreTrainedModel:
    again: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=chat.net.dtype)
    return again.to(chat.device).eval()


def export_gguf_lora(
    chat: ChatModel,
    history: Sequence[Gated],
    out: Path,
    probes: Sequence[str],
    *,
    rank: int = 0,
    card: Card = no_card,
) -> Exported:
    """Writes the history as one adapter for llama.cpp, reads it back, and compares every layer.

    Raises:
        UserError: nothing to export, a model that llama.cpp's layout is not known for, a folder
            that cannot be written, or weights that differ.
    """
    adapter, what = _joined(history, rank, "llama.cpp adapter")
    with whole_folder(out) as work:
        write_gguf_lora(work / ADAPTER_FILE, adapter, chat.text_config)
        _write_card(work, card(what))
        again = read_gguf_lora(work / ADAPTER_FILE, list(adapter.pairs), chat.text_config)
        for name in adapter.pairs:
            wanted = adapter.delta(name)
            gap = (again.delta(name) - wanted).abs().max()
            if not gap <= SAME * wanted.abs().max():
                raise UserError(f"The {what} read back differs on {name} by {gap:.2e}.")
        found = gated_logits(chat, [Gated(again)], probes)
        return verified(chat, history, adapter, found, probes=probes, what=what)


def export_gguf(
    chat: ChatModel,
    history: Sequence[Gated],
    source: Path,
    out: Path,
    probes: Sequence[str],
    *,
    card: Card = no_card,
) -> Exported:
    """Writes the GGUF file that the model was read from anew, with the history in its weights.

    It is loaded in a process without this program, and may differ by what float16 rounds.

    Args:
        chat: The base.
        history: Adapters at their gates.
        source: The base's file.
        out: The folder that is made.
        probes: User messages whose logits are compared.
        card: What README.md says.

    Raises:
        UserError: quantised weights, a model that llama.cpp's layout is not known for, a folder
            that cannot be written, or logits that differ.
    """
    what = "whole model as GGUF, changed weights in float16"
    with whole_folder(out) as work, quiet():
        with merged(chat, history):
            weights = {
                name: chat.net.get_parameter(f"{name}.weight").detach().cpu()
                for name in concatenated(history).pairs
            }
            rewrite_gguf(source, work / MODEL_FILE, weights, chat.text_config)
        _write_card(work, card(what))
        found = logits_elsewhere(chat, probes, model=work, gguf_file=MODEL_FILE)
        expected = gated_logits(chat, history, probes)
        refuse_apart(chat, expected, found, what, written=torch.float16)
        return compared(what, expected, found)


def export_vector(chat: ChatModel, vector: SteeringVector, out: Path, *, card: Card) -> str:
    """Writes a vector as a control vector for llama.cpp, reads it back, and compares every block.

    Returns:
        What was written.

    Raises:
        UserError: a vector that llama.cpp cannot hold, a folder that cannot be written, or
            directions that differ.
    """
    what = f"control vector on {len(vector.layers)} blocks"
    with whole_folder(out) as work:
        vector.export_gguf(work / VECTOR_FILE, chat.text_config.model_type)
        _write_card(work, card(what))
        again = SteeringVector.import_gguf(work / VECTOR_FILE).layers
        same = again.keys() == vector.layers.keys()
        if not same or not all(again[i].equal(v.float()) for i, v in vector.layers.items()):
            raise UserError(f"The {what} read back is another one.")
    return what


def vllm_note(rank: int) -> str:
    """What vLLM asks for beside an adapter of this rank; empty where it takes it as it is."""
    if rank in RANKS:
        return ""
    listed, above = ", ".join(map(str, RANKS)), room_for(rank)
    advice = (
        f"start it with --max-lora-rank {above}, or export with --rank {above}, which loses nothing"
        if above
        else f"export with --rank {RANKS[-1]} or --format merged"
    )
    return f"vLLM takes only ranks {listed}, and this adapter has {rank}: {advice}"


def _joined(history: Sequence[Gated], rank: int, kind: str) -> tuple[Adapter, str]:
    """The history as one adapter, and what it is called."""
    adapter = concatenated(history)
    if not rank:
        return adapter, f"{kind} (rank {adapter.rank})"
    less = recompressed(adapter, rank)
    lost = f"{100 * less.lost:.2g} % of ‖ΔW‖² lost"
    return less.adapter, f"{kind} (rank {rank} of {adapter.rank}, {lost})"


def _write_card(folder: Path, text: str) -> None:
    if text:
        (folder / "README.md").write_text(text, encoding="utf-8")


def _with_peft(chat: ChatModel, adapter: Adapter, folder: Path, probes: Sequence[str]) -> Logits:
    with untouched(chat, list(adapter.pairs)), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's own use of older names
        PeftModel.from_pretrained(chat.net, str(folder)).eval()
        return logits_of(chat.net, chat, probes)
