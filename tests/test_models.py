"""Loading, templating, hooks, batches, scoring."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, normalizers
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM

from steerheal.config import ModelSettings
from steerheal.errors import UserError
from steerheal.models import precision
from steerheal.models.batch import by_length, shared_prefix, shrinking
from steerheal.models.chat import prompt_ids, text_ids
from steerheal.models.fingerprint import fingerprint, weights_digests
from steerheal.models.gguf import EMBEDDED_NAME, embedded_file
from steerheal.models.hooks import adding, hook_count, hooked
from steerheal.models.load import load, wrap
from steerheal.models.model import find_blocks
from steerheal.models.score import continuation_states, kl_between, token_logprobs

import tiny


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_has_blocks_a_head_and_scores_like_its_own_logits(family: str) -> None:
    chat = tiny.chat(family)
    assert len(chat.blocks) == 4
    pairs = [(prompt_ids(chat, "hello"), [70, 71, 72]), (prompt_ids(chat, "hi"), [80, 258])]
    ours = token_logprobs(chat, pairs)
    for (prefix, rest), logs in zip(pairs, ours, strict=True):
        with torch.no_grad():
            logits = chat.net(input_ids=torch.tensor([[*prefix, *rest]])).logits[0].float()
        theirs = logits.log_softmax(-1)[len(prefix) - 1 : -1]
        expected = theirs.gather(1, torch.tensor(rest)[:, None])[:, 0]
        torch.testing.assert_close(logs, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3-multimodal"])
def test_a_large_model_is_read_in_bfloat16_where_the_processor_multiplies_it(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = tiny.net(family)
    net.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    own = sum(weight.numel() for weight in net.parameters())
    for able, large, dtype, expected in (
        (True, own, "auto", torch.bfloat16),
        (True, own + 1, "auto", torch.float32),
        (False, own, "auto", torch.float32),
        (True, own, "float32", torch.float32),
    ):
        monkeypatch.setattr(precision, "multiplies_bfloat16", lambda able=able: able)
        monkeypatch.setattr(precision, "LARGE", large)
        chat = load(ModelSettings(name=str(tmp_path), device="cpu", dtype=dtype))
        assert chat.net.dtype == expected


def test_multimodal_blocks_are_the_text_decoders() -> None:
    chat = tiny.chat("gemma3-multimodal")
    names = [name for name, module in chat.net.named_modules() if module is chat.blocks]
    assert names and "language_model" in names[0]


def test_a_shared_prefix_is_read_once_and_changes_nothing() -> None:
    chat = tiny.chat()
    system = "The same long system prompt stands before every one of these."
    pairs = [
        (prompt_ids(chat, text, system=system), text_ids(chat, "abc"))
        for text in ("a", "bb", "ccc")
    ]
    together = continuation_states(chat, pairs)
    for pair, states in zip(pairs, together, strict=True):
        torch.testing.assert_close(
            states, continuation_states(chat, [pair])[0], atol=1e-4, rtol=1e-4
        )


def test_a_template_without_system_role_gets_the_persona_in_the_user_turn() -> None:
    chat = tiny.chat(template=tiny.NO_SYSTEM + tiny.CHATML)
    assert not chat.system_role
    text = chat.tokenizer.decode(prompt_ids(chat, "hi", system="Be kind."))
    assert "user\nBe kind.\n\nhi" in text
    assert tiny.chat().system_role


def test_templated_text_gets_no_second_bos() -> None:
    tok = tiny.tokenizer()
    tok._tokenizer.post_processor = TemplateProcessing(
        single=f"{tiny.START} $A", special_tokens=[(tiny.START, 257)]
    )
    assert tok("x")["input_ids"][0] == 257
    chat = wrap(tiny.net(), tok, name="bos")
    assert prompt_ids(chat, "x")[:2] != [257, 257]


def test_long_prompts_are_never_truncated() -> None:
    chat = tiny.chat()
    chat.tokenizer.model_max_length = 16
    ids = prompt_ids(chat, "x" * 400)
    assert len(ids) > 400
    assert chat.tokenizer.decode(ids).endswith("assistant\n")


def test_a_model_without_chat_template_is_refused() -> None:
    with pytest.raises(UserError, match="no chat template"):
        tiny.chat(template=None)


def test_a_model_without_blocks_is_refused() -> None:
    net = tiny.net()
    net.config.num_hidden_layers = 7
    with pytest.raises(UserError, match="decoder blocks"):
        find_blocks(net)


def test_a_local_folder_loads_with_its_own_fingerprint(tmp_path: Path) -> None:
    tiny.net().save_pretrained(tmp_path / "m")
    tiny.tokenizer().save_pretrained(tmp_path / "m")
    one = load(ModelSettings(name=str(tmp_path / "m"), device="cpu"))
    again = load(ModelSettings(name=str(tmp_path / "m"), device="cpu"))
    assert one.fingerprint == again.fingerprint
    assert one.net.dtype == torch.float32
    assert tiny.chat(seed=1).fingerprint != tiny.chat().fingerprint


@pytest.mark.long
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_loads_from_a_folder_with_the_same_logits(family: str, tmp_path: Path) -> None:
    made = tiny.chat(family)
    made.net.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    again = load(ModelSettings(name=str(tmp_path), device="cpu"))
    ids = torch.tensor([prompt_ids(made, "hello")])
    torch.testing.assert_close(
        again.net(input_ids=ids).logits, made.net(input_ids=ids).logits, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [("no/such-model", "Cannot load model"), ("nowhere.gguf", "no GGUF file")],
)
def test_a_model_that_is_not_there_is_one_clear_message(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(ModelSettings(name=name, device="cpu"))


def test_a_folder_without_a_model_is_one_clear_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no model"):
        load(ModelSettings(name=str(tmp_path), device="cpu"))


def test_a_device_that_is_not_there_is_one_clear_message() -> None:
    with pytest.raises(UserError, match="cannot be used"):
        load(ModelSettings(device="cuda:77"))


@pytest.mark.slow
def test_a_truncated_gguf_is_one_clear_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEERHEAL_CACHE", str(tmp_path / "cache"))
    whole = embedded_file()
    cut = tmp_path / "cut.gguf"
    with whole.open("rb") as source:
        cut.write_bytes(source.read(3_000_000))
    with pytest.raises(UserError, match="truncated, damaged"):
        load(ModelSettings(name=str(cut), device="cpu"))
    (tmp_path / "not.gguf").write_bytes(b"hello world")
    with pytest.raises(UserError, match="not a GGUF"):
        load(ModelSettings(name=str(tmp_path / "not.gguf"), device="cpu"))
    assert not list((tmp_path / "cache" / "gguf").iterdir())


def test_a_damaged_local_folder_is_one_clear_message(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    tiny.net().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="Cannot load model"):
        load(ModelSettings(name=str(folder), device="cpu"))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    tiny.net().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    torch.save(tiny.net().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="Cannot load model"):
        load(ModelSettings(name=str(folder), device="cpu"))


def test_dose_zero_is_the_base_bit_for_bit() -> None:
    chat = tiny.chat()
    ids = torch.tensor([prompt_ids(chat, "hello there")])
    base = chat.net(input_ids=ids).logits
    with adding(chat, {1: torch.ones(32), 2: torch.ones(32)}, 0.0):
        assert torch.equal(chat.net(input_ids=ids).logits, base)
    with adding(chat, {1: torch.ones(32)}, 1.0):
        assert not torch.equal(chat.net(input_ids=ids).logits, base)
    assert torch.equal(chat.net(input_ids=ids).logits, base)


def test_adding_in_the_hook_equals_a_bias_on_the_blocks_output() -> None:
    chat = tiny.chat()
    ids = torch.tensor([prompt_ids(chat, "hello")])
    v = torch.randn(32, generator=torch.Generator().manual_seed(0))
    with adding(chat, {1: v}, 0.5):
        steered = chat.hidden(ids)
    down = chat.blocks[1].mlp.down_proj
    down.bias = torch.nn.Parameter(0.5 * v)
    torch.testing.assert_close(chat.hidden(ids), steered, atol=1e-5, rtol=1e-5)


def test_hooks_are_gone_even_when_entering_fails() -> None:
    chat = tiny.chat()
    hooks = {chat.blocks[0]: lambda *_: None, "not a module": lambda *_: None}
    with pytest.raises(AttributeError), hooked(hooks):  # pyright: ignore[reportArgumentType]
        pass
    assert hook_count(chat.net) == 0
    with pytest.raises(IndexError), adding(chat, {0: torch.ones(32), 99: torch.ones(32)}):
        pass
    assert hook_count(chat.net) == 0
    with pytest.raises(RuntimeError, match="inside"), adding(chat, {0: torch.ones(32)}):
        raise RuntimeError("inside")
    assert hook_count(chat.net) == 0


def test_batches_hold_every_index_once_within_budget() -> None:
    lengths = [5, 50, 7, 7, 100, 1, 30]
    batches = list(by_length(lengths, 100))
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert all(max(lengths[i] for i in b) * len(b) <= 100 or len(b) == 1 for b in batches)


def test_batches_have_little_padding() -> None:
    lengths = [60, 160, *range(60, 160, 3), 64]
    batches = list(by_length(lengths, 10_000))
    for batch in batches:
        found = [lengths[i] for i in batch]
        assert sum(found) >= 0.85 * max(found) * len(found)
    assert len(batches) < 5
    assert len(list(by_length(lengths, 10_000, launch=10_000))) == 1


def test_an_opening_is_shared_where_that_is_worth_a_forward() -> None:
    rows = [[*range(20), i] for i in range(5)]
    assert shared_prefix(rows) == shared_prefix(rows, launch=80) == 20
    assert shared_prefix(rows, launch=81) == 0


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        RuntimeError("Expected mha_graph.execute(handle, pack, workspace).is_good() to be true"),
    ],
)
def test_out_of_memory_halves_the_batch_and_loses_nothing(error: RuntimeError) -> None:
    done: list[int] = []

    def work(batch: list[int]) -> None:
        if len(batch) > 2:
            raise error
        done.extend(batch)

    shrinking(list(range(7)), work)
    assert done == list(range(7))
    with pytest.raises(RuntimeError, match="else"):
        shrinking([1, 2], lambda _: (_ for _ in ()).throw(RuntimeError("else")))


def test_divergence_of_a_state_from_itself_is_zero_and_never_negative() -> None:
    chat = tiny.chat()
    states = torch.randn(9, 32, generator=torch.Generator().manual_seed(0))
    assert kl_between(chat, states, states).abs().max() == 0
    assert (kl_between(chat, states, states.flip(0)) >= -1e-6).all()


@pytest.mark.long
def test_the_embedded_model_loads_from_its_converted_copy() -> None:
    chat = load(ModelSettings(device="cpu"))
    assert chat.name == EMBEDDED_NAME
    assert "quantization_config" not in json.loads(chat.net.config.to_json_string())


def altered(change: str) -> str:
    """The fingerprint of the tiny Llama after one change."""
    net, tok = tiny.net(), tiny.tokenizer()
    weights = dict(net.named_parameters())
    if change in weights:
        weights[change].data.view(-1)[-1] += 1e-6
    elif change == "eos of the generation config":
        net.generation_config.eos_token_id = [258, 10]
    elif change == "the normaliser":
        tok._tokenizer.normalizer = normalizers.Lowercase()
    elif change == "another vocabulary of that size":
        raw = json.loads(tok._tokenizer.to_str())
        words = raw["model"]["vocab"]
        words["A"], words["B"] = words["B"], words["A"]
        tok._tokenizer = Tokenizer.from_str(json.dumps(raw))
    elif change == "the template":
        tok.chat_template = f"{tok.chat_template} "
    elif change == "a special token":
        tok.add_special_tokens({"pad_token": tiny.START})
    elif change == "the architecture":
        net.config.rms_norm_eps = 1e-5
    else:
        assert not change
    return fingerprint(net, tok)


@pytest.mark.long
def test_one_changed_thing_anywhere_changes_the_fingerprint() -> None:
    changes = [
        *(name for name, _ in tiny.net().named_parameters()),
        "eos of the generation config",
        "the normaliser",
        "another vocabulary of that size",
        "the template",
        "a special token",
        "the architecture",
    ]
    found = {change: altered(change) for change in ["", *changes]}
    assert len(set(found.values())) == len(found)
    assert altered("") == found[""]


def test_the_fingerprint_knows_every_byte_and_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here", "there"):
        tiny.net().save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)
    here, there = (
        load(ModelSettings(name=str(tmp_path / name), device="cpu")) for name in ("here", "there")
    )
    assert here.fingerprint == there.fingerprint
    # Persistent buffers count, and so do pieces beyond the first of a large matrix.
    monkeypatch.setattr("steerheal.models.fingerprint.PIECE", 100)
    net = tiny.net()
    net.register_buffer("scale", torch.ones(1))
    before = weights_digests(net)
    net.get_buffer("scale").add_(1)
    net.model.embed_tokens.weight.data[-1, -1] += 1
    after = weights_digests(net)
    assert {name for name in after if after[name] != before[name]} == {
        "scale",
        "model.embed_tokens.weight",
    }


def test_tied_weights_and_half_precision_have_a_digest() -> None:
    net = LlamaForCausalLM(LlamaConfig(**tiny.SIZES, tie_word_embeddings=True)).bfloat16()
    found = weights_digests(net)
    assert found["lm_head.weight"] == found["model.embed_tokens.weight"]
    assert found["lm_head.weight"][0] == "torch.bfloat16"
