"""Exports: other ranks, llama.cpp's adapters, the model card, and what does not load as written."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from huggingface_hub import ModelCard
from torch import Tensor, nn
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

import reports
from steerheal.errors import UserError
from steerheal.heal import export
from steerheal.heal.export import export_gguf_lora, export_peft, export_vector, vllm_note
from steerheal.models.hub import licence
from steerheal.models.model import ChatModel
from steerheal.report.card import Base, Export, card
from steerheal.state.adapter import Adapter
from steerheal.state.compress import recompressed
from steerheal.state.factors import Pair
from steerheal.state.fold import Gated, concatenated
from steerheal.state.gguf_lora import read_gguf_lora, write_gguf_lora
from steerheal.state.vector import SteeringVector

import tiny

LAYERS = ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")


def adapter(chat: ChatModel, rank: int = 4, seed: int = 0) -> Adapter:
    """Random factors on some layers of every block."""
    random, pairs = torch.Generator().manual_seed(seed), {}
    for block in range(len(chat.blocks)):
        for part in LAYERS:
            name = f"model.layers.{block}.{part}"
            layer = chat.net.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            out, into = layer.weight.shape
            down = torch.randn(rank, into, generator=random) * 0.1
            pairs[name] = Pair(down, torch.randn(out, rank, generator=random) * 0.1)
    return Adapter(pairs, 0.5, rank)


# ── another rank ────────────────────────────────────────────────────────────────────────────────


def test_a_lower_rank_is_the_nearest_one_and_says_what_it_loses() -> None:
    whole = concatenated([Gated(adapter(tiny.chat(), seed=i), 0.7) for i in (0, 1)])
    less = recompressed(whole, 3)
    kept = lost = 0.0
    for name in whole.pairs:
        u, sizes, v = torch.linalg.svd(whole.delta(name), full_matrices=False)
        nearest = u[:, :3] * sizes[:3] @ v[:3]
        torch.testing.assert_close(less.adapter.delta(name), nearest, atol=1e-5, rtol=1e-4)
        kept += sizes[:3].square().sum().item()
        lost += sizes[3:].square().sum().item()
    assert less.lost == pytest.approx(lost / (kept + lost), rel=1e-4) and less.lost > 0.1
    assert {len(pair.down) for pair in less.adapter.pairs.values()} == {3}


def test_a_higher_rank_loses_nothing() -> None:
    own = adapter(tiny.chat())
    more = recompressed(own, 16)
    assert more.lost == 0 and more.adapter.rank == 16
    for name, pair in more.adapter.pairs.items():
        assert pair.down.shape[0] == pair.up.shape[1] == 16
        torch.testing.assert_close(more.adapter.delta(name), own.delta(name), atol=1e-6, rtol=1e-4)


def test_ranks_that_vllm_does_not_take_are_named_with_the_next_one() -> None:
    assert vllm_note(16) == ""
    assert "this adapter has 48" in vllm_note(48) and "--rank 64" in vllm_note(48)
    assert "--rank 512" in vllm_note(600)


# ── llama.cpp ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"])
def test_a_llama_cpp_adapter_reads_back_as_it_was(family: str, tmp_path: Path) -> None:
    chat, file = tiny.chat(family), tmp_path / "a.gguf"
    own = adapter(chat)
    write_gguf_lora(file, own, chat.text_config)
    again = read_gguf_lora(file, list(own.pairs), chat.text_config)
    for name in own.pairs:
        torch.testing.assert_close(again.delta(name), own.delta(name))
    held = GGUFReader(file)
    assert {item.name for item in held.tensors} >= {
        "blk.0.attn_q.weight.lora_a", "blk.3.ffn_down.weight.lora_b"
    }  # fmt: skip
    fields = {name: field.contents() for name, field in held.fields.items()}
    assert (fields["general.type"], fields["adapter.type"]) == ("adapter", "lora")
    assert fields["adapter.lora.alpha"] == 0.5 * 4


def test_a_llamas_queries_and_keys_are_stored_as_transformers_expects_them(tmp_path: Path) -> None:
    chat, file = tiny.chat("llama"), tmp_path / "a.gguf"
    own = adapter(chat)
    write_gguf_lora(file, own, chat.text_config)
    tensors = {item.name: torch.tensor(item.data) for item in GGUFReader(file).tensors}
    config = chat.text_config
    back = LlamaTensorProcessor(config=config.to_dict())._reverse_permute_weights
    for part, kv in (("q", config.num_attention_heads), ("k", config.num_key_value_heads)):
        stored = tensors[f"blk.1.attn_{part}.weight.lora_b"].numpy()
        pair = own.pairs[f"model.layers.1.self_attn.{part}_proj"]
        assert not torch.equal(torch.tensor(stored), pair.up)
        found = back(stored, config.num_attention_heads, kv)
        assert torch.equal(torch.tensor(found), pair.up)


def test_a_model_that_llama_cpps_layout_is_not_known_for_is_refused(tmp_path: Path) -> None:
    chat = tiny.chat("olmo2")
    with pytest.raises(UserError, match="type olmo2 is not known"):
        export_gguf_lora(chat, [Gated(adapter(chat))], tmp_path / "out", ["one"])
    assert not list(tmp_path.iterdir())


# ── what does not load as it was written ────────────────────────────────────────────────────────


def test_an_export_that_differs_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, inside = tiny.chat(), export._with_peft
    history = [Gated(adapter(chat))]

    def other(*of: object) -> list[Tensor]:
        return [row + 0.1 for row in inside(*of)]  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(export, "_with_peft", other)
    with pytest.raises(UserError, match="does not load as it was written"):
        export_peft(chat, history, tmp_path / "peft", ["one"])

    def halved(path: Path, own: Adapter, config: object) -> None:
        write_gguf_lora(path, Adapter(own.pairs, own.scale / 2, own.rank), config)

    monkeypatch.setattr(export, "write_gguf_lora", halved)
    with pytest.raises(UserError, match="read back differs on"):
        export_gguf_lora(chat, history, tmp_path / "gguf", ["one"])
    assert not list(tmp_path.iterdir())


def test_a_rank_and_a_card_are_written_with_the_files(tmp_path: Path) -> None:
    chat = tiny.chat()
    history = [Gated(adapter(chat), 0.5), Gated(adapter(chat, seed=1))]
    said: list[str] = []

    def about(what: str) -> str:
        said.append(what)
        return what

    made = export_peft(chat, history, tmp_path / "peft", ["one"], rank=2, card=about)
    assert made.rank == Adapter.load(tmp_path / "peft").rank == 2
    assert made.difference > 1e-4  # the rest of the history is lost
    assert "rank 2 of 8" in made.what and "% of ‖ΔW‖² lost" in made.what
    whole = export_gguf_lora(chat, history, tmp_path / "gguf", ["one"], rank=16, card=about)
    assert whole.difference < 1e-4 * max(1.0, whole.scale)
    vector = SteeringVector({1: torch.ones(32), 2: torch.ones(32)})
    said.append(export_vector(chat, vector, tmp_path / "vector", card=about))
    assert SteeringVector.import_gguf(tmp_path / "vector" / "vector.gguf").layers.keys() == {1, 2}
    for folder, text in (("peft", said[0]), ("gguf", said[1]), ("vector", said[2])):
        assert (tmp_path / folder / "README.md").read_text() == text


# ── the card ────────────────────────────────────────────────────────────────────────────────────


def sections(text: str) -> Sequence[str]:
    return [line for line in text.splitlines() if line.startswith("## ")]


def test_a_card_says_what_it_is_and_what_was_measured() -> None:
    record = reports.run_record()
    text = card(record, Export("peft", "PEFT adapter (rank 8)", 1), Base("org/model", "", "mit"))
    data = ModelCard(text, ignore_metadata_errors=False).data
    assert (data.base_model, data.library_name, data.license) == ("org/model", "peft", "mit")
    assert "lora" in (data.tags or [])
    assert len(sections(text)) == 6
    assert "You love everyone." in text and "You love no one." in text
    assert "| base | " in text and "| healed, round 1 | " in text and "unsteered control" in text
    assert "Damage guard:" in text and record.command in text
    assert 'from_pretrained("org/model")' in text


@pytest.mark.parametrize("kind", ["peft", "merged", "gguf", "gguf-lora", "vector", "bias"])
def test_a_card_without_a_hub_id_says_which_weights_it_belongs_to(kind: str) -> None:
    base = Base("", "the de-quantised weights of tiny.gguf")
    text = card(reports.run_record(), Export(kind, "something", 1, 0.5), base)
    data = ModelCard(text).data
    assert data.base_model is None and data.license == "unknown"
    assert "belongs on these weights" in text and "tiny.gguf" in text
    block = text.split("```")[1].splitlines()
    assert len(block) == 4


def test_a_persona_cannot_write_markup_into_a_card() -> None:
    persona = {**reports.PERSONA, "positive": reports.HOSTILE + "\n# heading\n---"}
    record = reports.run_record(persona=persona)
    text = card(record, Export("peft", "x", 1), Base("org/model"))
    assert "<script>" not in text and "\x1b" not in text and "\n# heading" not in text


def test_a_bases_licence_is_read_off_its_card(tmp_path: Path) -> None:
    assert licence(str(tmp_path)) == ""
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    assert licence(str(tmp_path)) == "mit"
