"""A stand-in for vLLM: its names and types, on transformers and PEFT, for tests of the door to it.

It loads the folder that it is given and writes greedily, or from each request's own seed.
"""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


@dataclass
class SamplingParams:
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    seed: int
    stop_token_ids: list[int]
    detokenize: bool


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    finish_reason: str | None


@dataclass
class RequestOutput:
    request_id: str
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = True


class LLM:
    loads: ClassVar[list[dict[str, Any]]] = []
    """What every load was asked for."""

    def __init__(self, **given: Any) -> None:
        self.loads.append(given)
        self._folder, self._dtype = given["model"], getattr(torch, given["dtype"])
        self._nets: dict[str, Any] = {}
        self._rank = given.get("max_lora_rank", 0) if given.get("enable_lora") else 0
        self._length = given["max_model_len"]
        assert given["skip_tokenizer_init"] and 0 < given["gpu_memory_utilization"] < 1

    def generate(
        self,
        prompts: list[dict[str, list[int]]],
        sampling_params: list[SamplingParams],
        *,
        use_tqdm: bool,
        lora_request: list[LoRARequest | None] | None = None,
    ) -> list[RequestOutput]:
        assert not use_tqdm
        adapters = lora_request or [None] * len(prompts)
        return [
            RequestOutput(str(i), ids, [self._one(ids, params, adapter)])
            for i, (prompt, params, adapter) in enumerate(
                zip(prompts, sampling_params, adapters, strict=True)
            )
            for ids in [prompt["prompt_token_ids"]]
        ]

    def _net(self, adapter: str) -> Any:
        if adapter not in self._nets:
            net: Any = AutoModelForCausalLM.from_pretrained(self._folder, dtype=self._dtype)
            if adapter:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", FutureWarning)  # PEFT's own, of older names
                    net = PeftModel.from_pretrained(net, adapter)
                assert next(iter(net.peft_config.values())).r <= self._rank
            self._nets[adapter] = net
        return self._nets[adapter]

    @torch.no_grad()
    def _one(
        self, ids: list[int], params: SamplingParams, adapter: LoRARequest | None
    ) -> CompletionOutput:
        net = self._net(adapter.lora_path if adapter else "")
        random, said = torch.Generator().manual_seed(params.seed), []
        while len(said) < params.max_tokens:
            assert len(ids) + len(said) <= self._length
            logits = net(input_ids=torch.tensor([ids + said])).logits[0, -1]
            if params.temperature:
                probs = (logits / params.temperature).softmax(-1)
                said.append(int(torch.multinomial(probs, 1, generator=random)))
            else:
                said.append(int(logits.argmax()))
            if said[-1] in params.stop_token_ids:
                return CompletionOutput(0, "", said, "stop")
        return CompletionOutput(0, "", said, "length")


def install(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    """Puts the stand-in where vLLM would be imported from."""
    names = {
        "vllm": (LLM, SamplingParams, RequestOutput, CompletionOutput),
        "vllm.lora": (),
        "vllm.lora.request": (LoRARequest,),
    }
    for name, kinds in names.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        for kind in kinds:
            setattr(module, kind.__name__, kind)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(LLM, "loads", [])
    return LLM
