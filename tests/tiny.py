"""Tiny random models with a byte tokenizer, built in memory: nothing is downloaded."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache, wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from steerheal.config import ModelSettings
from steerheal.models.load import load, wrap
from steerheal.models.model import ChatModel
from steerheal.personas import Axis, Persona, Prompts
from steerheal.pipeline import stages
from steerheal.state.values import State, base
from steerheal.state.vector import SteeringVector

START, END = "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
)
SIZES: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "pad_token_id": 256,
    "bos_token_id": 257,
    "eos_token_id": 258,
}
GEMMA: dict[str, Any] = {**SIZES, "head_dim": 8, "sliding_window": 24}
PHI: dict[str, Any] = {**SIZES, "num_key_value_heads": 4}


def gemma3_text() -> Gemma3TextConfig:
    return Gemma3TextConfig(**GEMMA, layer_types=["sliding_attention", "full_attention"] * 2)


def gemma3_multimodal() -> Gemma3ForConditionalGeneration:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(
        text_config=gemma3_text(),
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=259,
    )
    return Gemma3ForConditionalGeneration(config)


FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**GEMMA)),
    "gemma3": lambda: Gemma3ForCausalLM(gemma3_text()),
    "gemma3-multimodal": gemma3_multimodal,
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=24)),
    "phi": lambda: PhiForCausalLM(PhiConfig(**PHI)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SIZES)),
    "olmo": lambda: OlmoForCausalLM(OlmoConfig(**SIZES)),
    "olmo2": lambda: Olmo2ForCausalLM(Olmo2Config(**SIZES)),
}


def tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """One token per byte, and the turn markers."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(name, special=True) for name in ("<pad>", START, END)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token=START, eos_token=END
    )
    made.chat_template = template
    return made


def net(family: str = "llama", *, seed: int = 0) -> PreTrainedModel:
    """A random model whose logits differ between inputs; weights are scaled up from their init."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = FAMILIES[family]()
        for name, weight in made.named_parameters():
            if weight.ndim > 1:
                weight.data.mul_(4)
            elif "norm" not in name:
                weight.data.add_(torch.randn_like(weight) * 0.1)
    return made


@cache
def embedded() -> ChatModel:
    """The embedded model, for tests that leave it as it is."""
    return load(ModelSettings(device="cpu"))


def chat(
    family: str = "llama", *, template: str | None = CHATML, seed: int = 0, **given: Any
) -> ChatModel:
    if given or template != CHATML:  # a template may print the date of its loading
        return _loaded(family, template, seed, **given)
    return deepcopy(_kept(family, template, seed))


def _loaded(family: str, template: str | None, seed: int, **given: Any) -> ChatModel:
    return wrap(net(family, seed=seed), tokenizer(template), name=f"tiny-{family}", **given)


_kept = cache(_loaded)
"""What loading tries and digests is the same for every copy."""


@cache
def saved(root: Path, name: str = "tiny-llama", seed: int = 0) -> Path:
    """A tiny Llama saved as a local model folder."""
    folder = root / name
    net(seed=seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


TEST = ("test a", "test b", "test c", "test d")


def prompts(test: tuple[str, ...] = ()) -> Prompts:
    return Prompts(
        train=tuple(f"train {i}" for i in range(6)),
        evaluate=tuple(f"evaluate {i}" for i in range(4)),
        show=("show a", "show b"),
        test=test,
    )


def steered(vectors: Mapping[int, Tensor], doses: Sequence[float]) -> list[State]:
    """The model under a vector at each of the doses."""
    vector = SteeringVector(dict(vectors))
    return [base().steered(vector, dose) for dose in doses]


def persona(**changes: Any) -> Persona:
    fields: dict[str, Any] = {
        "name": "test",
        "title": "a persona to test with",
        "positive": "You are warm.",
        "negative": "You are cold!",
        "neutral": "You are here.",
        "axis": Axis(foundation="care", sign=1, off_target=("authority",)),
        "prompts": prompts(),
    }
    return Persona(**fields | changes)


def in_place_of(
    monkeypatch: pytest.MonkeyPatch, stage: str, function: Callable[..., object]
) -> None:
    """Another function makes the stage of this name in `pipeline.stages`, under the same keys."""
    one = getattr(stages, stage)
    other = replace(one, function=wraps(one.function)(function))
    monkeypatch.setattr(stages, stage, other)
