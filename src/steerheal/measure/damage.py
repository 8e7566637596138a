"""The damage guard: what a push towards a trait must leave alone.

Answer mass at a forced slot stays high while meaning collapses, so that four more things are read:
the perplexity of plain prose under the state, free replies that should be JSON, and long answers to
open prompts (looping, diversity, length, and their tail perplexity under the base).
"""

import json
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerheal.measure.fluency import char_repetition, distinct, tail_perplexity, word_repetition
from steerheal.measure.free import answer_pairs
from steerheal.models.chat import document_ids
from steerheal.models.finite import refuse_at_rest
from steerheal.models.model import ChatModel
from steerheal.models.score import token_logprobs
from steerheal.prompts import data
from steerheal.records import Completion, HealthRow, JsonRow

JSON_TOKENS = 48
LOOP_WORDS, LOOP_CHARS = 0.35, 0.5
"""Shares of repeated word trigrams or character 8-grams above which a long answer loops."""


def plain_perplexity(chat: ChatModel) -> float:
    """Perplexity of the bundled plain prose under the model in its present state.

    Every paragraph is read on its own, from the beginning of a text as the model expects it
    (`document_ids`).

    Raises:
        UserError: it is not finite, and nothing steers the model.
    """
    text = data().joinpath("plain.txt").read_text(encoding="utf-8")
    pairs = [document_ids(chat, part) for part in text.split("\n\n") if part.strip()]
    logs: Float[Tensor, " _"] = torch.cat(token_logprobs(chat, pairs))
    found = torch.exp(-logs.mean()).item()
    if not math.isfinite(found):
        refuse_at_rest(chat)
    return found


def json_rows(replies: Sequence[Completion]) -> list[JsonRow]:
    """Whether each reply holds JSON."""
    return [JsonRow(completion=reply, valid=holds_json(reply.text)) for reply in replies]


def holds_json(text: str) -> bool:
    """Whether the first object or list in the text parses."""
    starts = [place for place in (text.find("{"), text.find("[")) if place >= 0]
    if not starts:
        return False
    try:
        json.JSONDecoder().raw_decode(text, min(starts))
    except (ValueError, RecursionError):
        return False
    return True


def health_rows(base: ChatModel, answers: Sequence[Completion]) -> list[HealthRow]:
    """How healthy long answers are; the base, unsteered and unfolded, reads their tails."""
    logs = token_logprobs(base, answer_pairs(base, answers)) if answers else []
    return [
        HealthRow(
            completion=answer,
            tail_perplexity=tail_perplexity(row.tolist()),
            distinct_2=distinct(answer.text, 2),
            loops=word_repetition(answer.text) > LOOP_WORDS
            or char_repetition(answer.text) > LOOP_CHARS,
            words=len(answer.text.split()),
        )
        for answer, row in zip(answers, logs, strict=True)
    ]
