"""GGUF files: the header speaks before the conversion, whose copy is whole, shared and swept."""

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from gguf import GGUFReader, GGUFWriter, TokenType
from tokenizers import pre_tokenizers

from steerheal.config import ModelSettings
from steerheal.errors import UserError
from steerheal.models import gguf
from steerheal.models.chat import prompt_ids
from steerheal.models.load import load
from steerheal.state.fold import Gated, merged
from steerheal.state.gguf_model import rewrite_gguf
from test_export import adapter

import tiny

BLOCKS, WIDTH, HIDDEN = 2, 32, 48
SPECIAL = ["<pad>", tiny.START, tiny.END, "<end>"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STEERHEAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


def written(
    file: Path,
    *,
    template: str | None = tiny.CHATML,
    stated: int = BLOCKS,
    without: str = "",
    parts: int = 1,
    bad: bool = False,
) -> ModelSettings:
    """A random Llama of two blocks as a GGUF file of float32 tensors."""
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    words = letters + SPECIAL
    to = GGUFWriter(file, "llama")
    to.add_context_length(256)
    to.add_embedding_length(WIDTH)
    to.add_feed_forward_length(HIDDEN)
    to.add_block_count(stated)
    to.add_head_count(4)
    to.add_head_count_kv(2)
    to.add_rope_dimension_count(8)
    to.add_layer_norm_rms_eps(1e-5)
    to.add_vocab_size(len(words))
    to.add_tokenizer_model("gpt2")
    to.add_token_list(words)
    to.add_token_merges(["a b"])
    to.add_token_types([TokenType.NORMAL] * len(letters) + [TokenType.CONTROL] * len(SPECIAL))
    to.add_bos_token_id(len(letters) + 1)
    to.add_eos_token_id(len(letters) + 2)
    if parts > 1:
        to.add_uint16("split.count", parts)
    if template is not None:
        to.add_chat_template(template)
    random = np.random.default_rng(0)
    shapes = {"token_embd.weight": (len(words), WIDTH), "output.weight": (len(words), WIDTH)}
    shapes["output_norm.weight"] = (WIDTH,)
    for i in range(BLOCKS):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (WIDTH,),
            f"blk.{i}.ffn_norm.weight": (WIDTH,),
            f"blk.{i}.attn_q.weight": (WIDTH, WIDTH),
            f"blk.{i}.attn_k.weight": (WIDTH // 2, WIDTH),
            f"blk.{i}.attn_v.weight": (WIDTH // 2, WIDTH),
            f"blk.{i}.attn_output.weight": (WIDTH, WIDTH),
            f"blk.{i}.ffn_gate.weight": (HIDDEN, WIDTH),
            f"blk.{i}.ffn_up.weight": (HIDDEN, WIDTH),
            f"blk.{i}.ffn_down.weight": (WIDTH, HIDDEN),
        }
    for name, shape in shapes.items():
        values = random.normal(size=shape).astype(np.float32)
        if bad and name == "blk.1.ffn_up.weight":
            values[3, 4] = np.nan
        if name != without:
            to.add_tensor(name, values)
    to.write_header_to_file()
    to.write_kv_data_to_file()
    to.write_tensors_to_file()
    to.close()
    return ModelSettings(name=str(file), device="cpu")


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(*_: object) -> None:
        raise AssertionError("converted")

    monkeypatch.setattr(gguf, "_convert", convert)


def test_a_gguf_loads_and_its_flagged_tokens_end_a_turn(tmp_path: Path) -> None:
    template = tiny.CHATML.replace(tiny.END, "<end>")
    chat = load(written(tmp_path / "m.gguf", template=template))
    assert len(chat.blocks) == BLOCKS
    assert chat.tokenizer.convert_ids_to_tokens([*chat.stop_ids()]) == [tiny.END, "<end>"]
    assert chat.tokenizer.convert_ids_to_tokens(chat.end_of_turn()) == "<end>"
    assert chat.positions() == 256


@pytest.mark.usefixtures("never")
def test_a_gguf_without_template_is_refused_from_its_header(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no chat template in its header.*--model\.template FILE"):
        load(written(tmp_path / "m.gguf", template=None))


def test_a_template_file_serves_a_gguf_without_one(tmp_path: Path) -> None:
    settings = written(tmp_path / "m.gguf", template=None)
    (tmp_path / "t.jinja").write_text(tiny.CHATML)
    chat = load(settings.model_copy(update={"template": str(tmp_path / "t.jinja")}))
    assert "assistant" in chat.tokenizer.decode(prompt_ids(chat, "hi"))


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize(("stated", "held"), [(3, 2), (1, 2)])
def test_blocks_that_are_stated_and_not_held_are_refused(
    stated: int, held: int, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"states {stated} blocks and holds the weights of {held}"):
        load(written(tmp_path / "m.gguf", stated=stated))


@pytest.mark.usefixtures("never")
def test_a_part_of_a_gguf_says_how_to_join(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"one of 3 parts.*--merge"):
        load(written(tmp_path / "m.gguf", parts=3))


def test_a_missing_matrix_and_a_nan_are_refused_by_name(tmp_path: Path, home: Path) -> None:
    with pytest.raises(UserError, match=r"lacks.*layers\.1\.mlp\.up_proj"):
        load(written(tmp_path / "a.gguf", without="blk.1.ffn_up.weight"))
    assert not list(home.iterdir())
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj\.weight \(1 NaN\)"):
        load(written(tmp_path / "b.gguf", bad=True))


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda raw: raw[: int(len(raw) * share)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:7],
        lambda raw: raw[:30],
        cut(0.05),
        cut(0.5),
        lambda raw: raw[:4] + b"\x09" + raw[5:],  # another version
        lambda raw: raw.replace(b"llama", b"lamla"),
        lambda raw: raw[:24] + bytes(len(raw) - 24),
    ],
)
def test_every_damage_gives_the_same_message(
    damage: Callable[[bytes], bytes], tmp_path: Path, home: Path
) -> None:
    settings = written(tmp_path / "m.gguf")
    file = tmp_path / "m.gguf"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match="truncated, damaged or of an unsupported") as caught:
        load(settings)
    assert "\n" not in str(caught.value)
    assert not home.is_dir() or not list(home.iterdir())


@pytest.mark.parametrize("content", [b"", b"hello"])
def test_what_is_no_gguf_is_said(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    with pytest.raises(UserError, match="is not a GGUF file"):
        load(ModelSettings(name=str(file), device="cpu"))


def test_the_copy_has_the_modes_that_the_umask_leaves(tmp_path: Path, home: Path) -> None:
    old = os.umask(0o027)
    try:
        load(written(tmp_path / "m.gguf"))
    finally:
        os.umask(old)
    (copy,) = home.iterdir()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o750
    assert {stat.S_IMODE(path.stat().st_mode) for path in copy.iterdir()} == {0o640}


def test_a_second_process_that_converts_the_same_file_first_is_no_failure(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, convert = written(tmp_path / "m.gguf"), gguf._convert

    def beaten(file: Path, folder: Path) -> None:
        convert(file, folder)
        theirs = home / gguf._digest(file, home)
        theirs.mkdir()
        convert(file, theirs)

    monkeypatch.setattr(gguf, "_convert", beaten)
    assert len(load(settings).blocks) == BLOCKS
    assert len(list(home.iterdir())) == 1


def test_what_a_killed_conversion_left_is_swept_and_a_running_one_is_not(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir(parents=True)
    node = "here"
    monkeypatch.setattr("platform.node", lambda: node)
    monkeypatch.setattr(psutil, "pid_exists", lambda pid: pid == 11)
    for name in ("here-11", "here-12", "there-12"):
        (home / f".making-{name}").mkdir()
    load(written(tmp_path / "m.gguf"))
    left = sorted(path.name for path in home.glob(".making-*"))
    assert left == [".making-here-11", ".making-there-12"]


def aged(file: Path, seconds: float) -> None:
    when = time.time() - seconds
    os.utime(file, (when, when))


def test_the_digest_of_a_settled_file_is_remembered_and_of_a_fresh_one_is_not(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF one")
    first = gguf._digest(file, home)
    file.write_bytes(b"GGUF two")
    assert gguf._digest(file, home) != first  # same size, within the clock's grain
    monkeypatch.setattr(gguf, "SETTLED", -1.0)
    second = gguf._digest(file, home)
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("hashed again"))
    assert gguf._digest(file, home) == second
    monkeypatch.undo()
    file.write_bytes(b"GGUF 333")
    aged(file, 0)
    assert gguf._digest(file, home) not in {first, second}


def test_a_copy_that_cannot_be_read_names_the_folder_to_delete(tmp_path: Path, home: Path) -> None:
    settings = written(tmp_path / "m.gguf")
    load(settings)
    (copy,) = home.iterdir()
    (copy / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=f"{copy.name} cannot be read.*Delete that folder"):
        load(settings)


def test_a_file_that_is_written_anew_holds_the_history_and_else_what_it_held(
    tmp_path: Path,
) -> None:
    files = tmp_path / "a.gguf", tmp_path / "b.gguf"
    chat = load(written(files[0]))
    history = [Gated(adapter(chat), 0.7)]
    names = history[0].adapter.pairs
    with merged(chat, history):
        held = {name: chat.net.get_submodule(name).weight.detach().clone() for name in names}
        rewrite_gguf(*files, held, chat.text_config)
    again = load(ModelSettings(name=str(files[1]), device="cpu"))
    for name, own in chat.net.named_parameters():
        layer = name.removesuffix(".weight")
        wanted = held[layer].half().float() if layer in names else own
        assert torch.equal(again.net.get_parameter(name), wanted), name
        assert layer not in names or not torch.equal(wanted, own)
    old, new = map(GGUFReader, files)
    assert {name: field.contents() for name, field in old.fields.items()} == {
        name: field.contents() for name, field in new.fields.items()
    }
    same = [
        one.name
        for one, other in zip(old.tensors, new.tensors, strict=True)
        if np.array_equal(one.data, other.data) and one.tensor_type == other.tensor_type
    ]
    assert len(same) == len(old.tensors) - len(names)
