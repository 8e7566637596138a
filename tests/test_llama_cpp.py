"""What llama.cpp itself reads in the files that are exported for it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from steerheal.models.chat import prompt_ids
from steerheal.models.gguf import embedded_file
from steerheal.models.model import ChatModel
from steerheal.state.adapter import Adapter
from steerheal.state.fold import Gated, folded, merged
from steerheal.state.gguf_lora import write_gguf_lora
from steerheal.state.gguf_model import rewrite_gguf
from test_export import adapter

import tiny

llama = pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")

pytestmark = pytest.mark.slow

ROWS = ("Who are you?", "Write a short note to a stranger.")
TOP = 20
LogProbs = Mapping[int, float]


def theirs(chat: ChatModel, model: Path, lora: Path | None = None) -> list[LogProbs]:
    """The likeliest next tokens in llama.cpp."""
    asked: Any = llama.CommonParams()
    asked.model.path, asked.n_ctx, asked.n_parallel, asked.warmup = str(model), 256, 1, False
    if lora is not None:
        side: Any = llama.CommonAdapterLoraInfo()
        side.path, side.scale = str(lora), 1.0
        asked.lora_adapters = [side]
    server: Any = llama.Server(asked)
    found = []
    for row in ROWS:
        ask = {"n_predict": 1, "n_probs": TOP, "temperature": 0.0, "prompt": prompt_ids(chat, row)}
        said = server.handle_completions(ask)["choices"][0]["logprobs"]["content"][0]
        found.append({item["id"]: item["logprob"] for item in said["top_logprobs"]})
    return found


def gap(chat: ChatModel, history: Sequence[Gated], read: Sequence[LogProbs]) -> float:
    """Mean difference of their log-probabilities from those of the model in a history."""
    with folded(chat, history), torch.no_grad():
        own = [
            chat.net(input_ids=torch.tensor([prompt_ids(chat, row)])).logits[0, -1].log_softmax(-1)
            for row in ROWS
        ]
    gaps = [
        abs(value - float(row[token]))
        for row, tokens in zip(own, read, strict=True)
        for token, value in tokens.items()
    ]
    return sum(gaps) / len(gaps)


@pytest.fixture(scope="module")
def changed() -> Adapter:
    own = adapter(tiny.embedded(), rank=4)
    return Adapter(own.pairs, 1.5, own.rank)


def test_llama_cpp_reads_what_was_exported_as_it_reads_the_base(
    changed: Adapter, tmp_path: Path
) -> None:
    chat, file, history = tiny.embedded(), embedded_file(), [Gated(changed)]
    # It multiplies by activations of eight bits, which the base's own gap shows.
    plain = theirs(chat, file)
    allowed = 1.5 * gap(chat, [], plain)
    assert gap(chat, history, plain) > 3 * allowed
    write_gguf_lora(tmp_path / "lora.gguf", changed, chat.text_config)
    assert gap(chat, history, theirs(chat, file, tmp_path / "lora.gguf")) < allowed
    with merged(chat, history):
        weights = {name: chat.net.get_submodule(name).weight.detach() for name in changed.pairs}
        rewrite_gguf(file, tmp_path / "whole.gguf", weights, chat.text_config)
    assert gap(chat, history, theirs(chat, tmp_path / "whole.gguf")) < allowed
