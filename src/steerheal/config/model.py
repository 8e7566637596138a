"""Which model, and how its chat template is filled."""

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, model_validator

from steerheal.bounds import Label, Place, read_text
from steerheal.config.base import Settings
from steerheal.config.validation import MOST_BYTES
from steerheal.errors import UserError
from steerheal.line import As

OWN_VARIABLES = ("messages", "tools", "documents", "add_generation_prompt", "strftime_now")
"""What a chat template is given anyway, and no setting may replace."""


def template_variables(words: object) -> object:
    """Variables off the command line: JSON objects or NAME=VALUE, a value read as JSON if it is.

    What is no list of words goes through as it is.

    Raises:
        ValueError: a word that is neither.
    """
    if not isinstance(words, list):
        return words
    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        whole = _json_or(word, None)
        if isinstance(whole, dict):
            found |= whole
        elif equals and name.isidentifier():
            found[name] = _json_or(text, text)
        else:
            raise ValueError(f"{word!r} is neither a JSON object nor NAME=VALUE")
    return found


def _json_or(text: str, otherwise: Any) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return otherwise


def _free_names(variables: dict[str, Any]) -> dict[str, Any]:
    for name in variables:
        if not name.isidentifier() or name.startswith("_") or name in OWN_VARIABLES:
            raise ValueError(f"{name!r} cannot be set in a chat template")
    return json.loads(json.dumps(variables, allow_nan=False))


def _is_a_date(text: str) -> str:
    try:
        if text:
            datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("needs a date such as 2026-03-14 or 2026-03-14T09:30") from None
    return text


TemplateVariables = Annotated[
    dict[str, Any], BeforeValidator(template_variables), AfterValidator(_free_names)
]
Date = Annotated[Label, AfterValidator(_is_a_date)]


class ModelSettings(Settings):
    """Which model, in which precision, where."""

    name: Annotated[Place, As(also=("--model",))] = ""
    """Empty: the embedded SmolLM2-135M-Instruct; else a hub id, a local folder or a GGUF file."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights; auto is bfloat16 on a GPU, and for a model of a billion parameters
    or more also on a CPU that multiplies it by itself (AVX512-BF16, AMX); else float32."""
    quantize: Literal["none", "nf4"] = "none"
    """nf4: linear layers in four bits by bitsandbytes, on CUDA (extra `quantize`); base and student
    are read in the same four bits. none: weights as they are."""
    shard: bool = False
    """Hold one model over all processes of a run, a part of the decoder blocks on each device
    (FSDP2). All of them do the same work: that is for memory and gains no time. Needs torchrun or
    accelerate launch."""
    device: Label = "auto"
    """Where it runs: auto, cpu, cuda, cuda:1, mps."""
    revision: Place | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Let the model's repository run its own Python code on this machine."""
    template: Place = ""
    """Jinja file with a chat template, in place of the model's own."""

    template_vars: TemplateVariables = {}
    """Variables of the chat template, as NAME=VALUE or one JSON object: enable_thinking=true lets
    a model think. Thinking is off where the template has a switch for it."""
    date: Date = ""
    """Date, or date and time, that a chat template prints, such as 2026-03-14; empty is now, once
    for the whole run. It changes nothing where a template prints no date."""

    @model_validator(mode="after")
    def _sharded_whole(self) -> Self:
        if self.shard and self.quantize != "none":
            raise ValueError(
                "model.shard shares out whole weights, which model.quantize "
                f"{self.quantize} packs; leave one of them out"
            )
        return self

    def template_text(self) -> str:
        """What the template file holds; empty where none is given.

        Raises:
            UserError: unreadable, too large, not UTF-8, or empty.
        """
        if not self.template:
            return ""
        text = read_text(Path(self.template), what="the chat template", most=MOST_BYTES)
        if not text.strip():
            raise UserError(f"The chat template {self.template} is empty. Give one with text.")
        return text
