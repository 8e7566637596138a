"""What a model must be before anything is read from it: whole, finite, in words, with an end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from torch import Tensor
from transformers import (
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from steerheal.config import ModelSettings, SamplingSettings
from steerheal.errors import UserError
from steerheal.models import hub
from steerheal.models.chat import decode, prompt_ids, text_ids
from steerheal.models.generate import Draw, generate
from steerheal.models.load import load, wrap
from steerheal.models.score import token_logprobs

import tiny

Weights = dict[str, Tensor]
LINEAR: dict[str, Any] = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}


def folder(
    where: Path,
    net: PreTrainedModel | None = None,
    *,
    config: dict[str, Any] | None = None,
    weights: Callable[[Weights], object] = lambda _: None,
) -> ModelSettings:
    """A saved model whose configuration or weights were changed afterwards."""
    (net or tiny.net()).save_pretrained(where)
    tiny.tokenizer().save_pretrained(where)
    stated = json.loads((where / "config.json").read_text())
    (where / "config.json").write_text(json.dumps(stated | (config or {})))
    held = load_file(where / "model.safetensors")
    weights(held)
    save_file(held, where / "model.safetensors", {"format": "pt"})
    return ModelSettings(name=str(where), device="cpu")


@pytest.mark.parametrize(
    ("config", "weights", "message"),
    [
        ({"num_hidden_layers": 6}, lambda _: None, "18 weights that the file lacks.*layers.4"),
        ({"num_hidden_layers": 3}, lambda _: None, "9 weights .* no place for.*layers.3"),
        ({"intermediate_size": 50}, lambda _: None, "48×32 in the file and 50×32 in the model"),
        ({"attention_bias": True}, lambda _: None, "16 weights that the file lacks.*bias"),
        ({}, lambda w: w.pop("lm_head.weight"), "lacks.*lm_head.weight"),
        ({}, lambda w: w.update({"more.weight": torch.ones(2)}), "no place for.*more.weight"),
    ],
)
def test_weights_that_do_not_fit_their_configuration_are_refused(
    config: dict[str, Any], weights: Callable[[Weights], object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        load(folder(tmp_path, config=config, weights=weights))


def test_a_tied_head_and_old_rotary_tables_are_no_faults(tmp_path: Path) -> None:
    tied = LlamaForCausalLM(LlamaConfig(**tiny.SIZES, tie_word_embeddings=True))
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    assert load(folder(tmp_path, tied, weights=lambda w: w.update(old))).fingerprint


def test_a_tower_that_the_loaded_part_lacks_may_stay_out(tmp_path: Path) -> None:
    net = tiny.net("gemma3-multimodal")
    more = {"audio_tower.weight": torch.ones(2)}
    assert load(folder(tmp_path / "a", net, weights=lambda w: w.update(more))).fingerprint
    own = {"model.language_model.layers.0.mlp.more.weight": torch.ones(2)}
    with pytest.raises(UserError, match=r"no place for.*mlp\.more"):
        load(folder(tmp_path / "b", net, weights=lambda w: w.update(own)))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_weight_that_is_no_number_is_refused_by_name(value: float) -> None:
    net = tiny.net()
    net.model.layers[2].mlp.up_proj.weight.data[3, 4] = value
    with pytest.raises(UserError, match=r"layers\.2\.mlp\.up_proj\.weight \(1 (NaN|inf)\)"):
        wrap(net, tiny.tokenizer(), name="broken")


def test_a_head_that_masks_padded_vocabulary_loads() -> None:
    net = tiny.net("phi")
    net.lm_head.bias.data[250:256] = -torch.inf
    chat = wrap(net, tiny.tokenizer(), name="masked")
    assert not chat.logits(torch.zeros(1, 32))[0, 250:256].isfinite().any()
    net.lm_head.bias.data[0] = torch.nan
    with pytest.raises(UserError, match=r"lm_head\.bias \(1 NaN, 6 inf\)"):
        wrap(net, tiny.tokenizer(), name="masked")


def test_a_tokenizer_larger_than_the_head_is_refused() -> None:
    tok = tiny.tokenizer()
    tok.add_tokens(["one", "two"])  # ids 259 and 260; the head ends at 259
    with pytest.raises(
        UserError, match=r"1 tokens that the model has no weights for.*'two' is 260"
    ):
        wrap(tiny.net(), tok, name="small")


def test_a_placeholder_for_images_may_lie_beyond_until_a_text_holds_it() -> None:
    plain = tiny.tokenizer()
    plain.add_tokens(["one"])
    tok = PreTrainedTokenizerFast(
        tokenizer_object=plain._tokenizer,
        eos_token=tiny.END,
        extra_special_tokens={"image_token": "<image>"},
    )
    tok.chat_template = tiny.CHATML
    assert tok.convert_tokens_to_ids("<image>") == 260
    chat = wrap(tiny.net(), tok, name="small")
    with pytest.raises(UserError, match="'<image>', a token that small has no weights for"):
        prompt_ids(chat, "look: <image>")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m['content'] }}", "does not parse"),
        ("{{ raise_exception('not today') }}", "refuses a plain user's message: not today"),
        ("{{ messages[7]['content'] + 1 }}", "refuses a plain user's message"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% if false %}{{ messages }}{% endif %}\n", "prints nothing"),
        ("Say something.", "prints 'Say something.' whatever the user says"),
    ],
)
def test_a_template_that_does_not_print_the_message_is_refused_at_load(
    template: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        tiny.chat(template=template)
    assert "\n" not in str(caught.value)


def test_several_templates_without_a_default_are_none() -> None:
    tok = tiny.tokenizer()
    tok.chat_template = {"rag": tiny.CHATML}
    with pytest.raises(UserError, match="no chat template"):
        wrap(tiny.net(), tok, name="several")


def with_end(template: str, *tokens: AddedToken) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with more tokens, from id 259 on, and another end of turn."""
    tok = tiny.tokenizer(tiny.CHATML.replace("<|im_end|>\n", template))
    tok.add_tokens(list(tokens))
    return tok


END = AddedToken("<end>", special=True)


@pytest.mark.parametrize(
    ("template", "token", "marker", "stops"),
    [
        ("<end>\n", END, 259, (258, 259)),
        ("\n<end>", END, 259, (258, 259)),
        (" over<end>\n", END, 259, (258, 259)),
        ("<end>", AddedToken("<end>", special=False), 259, (258, 259)),
        ("<|im_end|>", END, 258, (258,)),
        ("", END, 258, (257, 258)),  # nothing closes it; the next turn's opening stops as well
    ],
)
def test_whatever_the_template_prints_after_an_answer_ends_it(
    template: str, token: AddedToken, marker: int, stops: tuple[int, ...]
) -> None:
    chat = wrap(tiny.net(), with_end(template, token), name="ends")
    assert chat.end_of_turn() == marker
    assert chat.stop_ids() == stops
    assert not chat.ends.note
    assert decode(chat, [*b"hi", marker]) == decode(chat, [*b"hi"])


def test_all_ends_of_the_generation_config_stop_an_answer() -> None:
    net = tiny.net()
    net.generation_config.eos_token_id = [258, 10]
    assert wrap(net, tiny.tokenizer(), name="two").stop_ids() == (10, 258)


def test_a_marker_of_several_tokens_is_said_to_stop_nothing() -> None:
    chat = wrap(tiny.net(), with_end("### End\n"), name="words")
    assert chat.end_of_turn() == 258
    assert "'### End', which is no single special token" in chat.ends.note


def test_a_sampled_end_that_is_only_flagged_special_ends_the_completion() -> None:
    net = tiny.net("phi")
    net.lm_head.bias.data[259] = 1e4
    chat = wrap(net, with_end("<end>\n", END), name="ends")
    (done,) = generate(chat, [Draw("hi")], SamplingSettings(tokens=5))
    assert done.ended and done.tokens == (259,) and done.text == ""


@pytest.mark.parametrize(
    "make",
    [
        lambda: Lfm2ForCausalLM(
            Lfm2Config(**tiny.SIZES, layer_types=["conv", "full_attention"] * 2)
        ),
        lambda: Qwen3NextForCausalLM(
            Qwen3NextConfig(
                **tiny.SIZES, **LINEAR, head_dim=8, num_experts=4, moe_intermediate_size=16,
                num_experts_per_tok=2, shared_expert_intermediate_size=16,
            )
        ),
        lambda: MambaForCausalLM(
            MambaConfig(vocab_size=260, hidden_size=32, num_hidden_layers=4, state_size=4)
        ),
    ],
)  # fmt: skip
def test_layers_that_keep_a_running_state_are_refused_at_load(
    make: Callable[[], PreTrainedModel],
) -> None:
    net = make()
    with pytest.raises(
        UserError, match=rf"{type(net).__name__}\) is not supported: . of its 4 layers keep"
    ):
        wrap(net, tiny.tokenizer(), name="hybrid")


def test_a_model_that_reads_rows_together_otherwise_than_alone_is_refused() -> None:
    net = tiny.net()
    whole = net.model.forward

    def forgets(**inputs: Any) -> Any:
        inputs["past_key_values"] = None
        return whole(**{**inputs, "attention_mask": None})

    net.model.forward = forgets
    with pytest.raises(UserError, match="rows read together differ from the same rows read alone"):
        wrap(net, tiny.tokenizer(), name="forgetful")


def short(positions: int = 64, **rope: Any) -> LlamaForCausalLM:
    sizes = tiny.SIZES | {"max_position_embeddings": positions}
    return LlamaForCausalLM(LlamaConfig(**sizes, **rope))


def test_a_text_longer_than_the_positions_is_refused_before_it_is_read() -> None:
    chat = wrap(short(), tiny.tokenizer(), name="short")
    room = 64 - len(prompt_ids(chat, ""))
    with pytest.raises(UserError, match="65 tokens is to be read, but short has 64 positions"):
        prompt_ids(chat, "x" * (room + 1))
    fits = prompt_ids(chat, "x" * room)
    assert len(fits) == 64
    assert len(token_logprobs(chat, [(fits[:-1], fits[-1:])])[0]) == 1
    with pytest.raises(UserError, match="66 tokens is to be read"):
        token_logprobs(chat, [(fits, [1, 2, 3])])  # the last one is predicted, not read
    with pytest.raises(UserError, match=r"60 tokens .* up to 5 are to be written"):
        generate(chat, [Draw("x" * (room - 4))], SamplingSettings(tokens=5))
    (done,) = generate(chat, [Draw("x" * (room - 5))], SamplingSettings(tokens=5))
    assert len(done.tokens) <= 5
    # What rows share counts too, though it is read apart.
    with pytest.raises(UserError, match="66 tokens is to be read"):
        token_logprobs(chat, [(fits, [1, 2, 3]), (fits, [4, 5, 6])])


def test_the_limit_is_the_stretched_one_and_no_sliding_window() -> None:
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    assert wrap(short(rope_parameters=rope), tiny.tokenizer(), name="a").positions() == 256
    assert tiny.chat("mistral").positions() == 8192
    assert len(text_ids(tiny.chat("gemma3"), "x" * 600)) == 600


def test_a_template_file_stands_in_and_counts_as_part_of_the_model(tmp_path: Path) -> None:
    settings = folder(tmp_path / "m")
    file = tmp_path / "own.jinja"
    file.write_text(tiny.CHATML.replace("assistant", "model"), encoding="utf-8")
    own = load(settings.model_copy(update={"template": str(file)}))
    assert "model" in decode(own, prompt_ids(own, "hi"))
    assert own.fingerprint != load(settings).fingerprint
    file.write_text(" \n")
    with pytest.raises(UserError, match="is empty"):
        settings.model_copy(update={"template": str(file)}).template_text()
    with pytest.raises(UserError, match="Cannot read the chat template"):
        settings.model_copy(update={"template": str(tmp_path / "none")}).template_text()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("two words", "'two words': there is no such folder or file, and it cannot be a hub id"),
        ("a/b/c", "cannot be a hub id"),
        ("./near", "cannot be a hub id"),
        ("model.safetensors", "There is no file model.safetensors"),
        ("some/where.GGUF", "There is no GGUF file"),
    ],
)
def test_a_name_that_can_be_no_model_is_refused_without_asking_anybody(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "HfApi", lambda: pytest.fail("asked"))
    with pytest.raises(UserError, match=message):
        load(ModelSettings(name=name, device="cpu"))


class Hub:
    """A hub that fails at every call, and counts them."""

    def __init__(self, error: Exception) -> None:
        self.error, self.patience = error, []

    def model_info(self, _: str, *, revision: str | None, timeout: float) -> None:
        assert revision is None
        self.patience.append(timeout)
        raise self.error


def test_a_hub_that_does_not_answer_is_asked_once_for_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    silent = Hub(ConnectionError("no route"))
    monkeypatch.setattr(hub, "HfApi", lambda: silent)
    with pytest.raises(UserError, match=r"not in the local cache, and the hub .* \(no route\)"):
        load(ModelSettings(name="no/such-model", device="cpu"))
    assert silent.patience == [hub.PATIENCE] and hub.PATIENCE <= 5
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_, **__: "config.json")
    assert hub.only_cached("no/such-model", None)


def test_a_model_with_its_own_code_names_the_setting_that_runs_it(tmp_path: Path) -> None:
    own = {"auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}}
    settings = folder(tmp_path, config={"model_type": "own", **own})
    with pytest.raises(UserError, match=r"only with --model\.trust-remote-code") as caught:
        load(settings)
    assert "\n" not in str(caught.value)
