"""Fluency of a text: repetition, diversity, and perplexity from given log-probabilities."""

import math
import re
from collections.abc import Hashable, Sequence

WORDS, CHARS = 3, 8
TAIL = 0.25
"""Share of a text, from its end, that tail readings look at: collapse comes late."""


def word_repetition(text: str) -> float:
    """Share of word trigrams that repeat an earlier one; 0 for fewer than two trigrams."""
    return _repeated(re.findall(r"[\w']+", text.lower()), WORDS)


def char_repetition(text: str) -> float:
    """Share of character 8-grams that repeat an earlier one; sees loops inside words."""
    return _repeated(re.sub(r"\s+", " ", text.lower()), CHARS)


def distinct(text: str, n: int) -> float:
    """Distinct word n-grams over all (Li et al. 2016, arXiv:1510.03055); NaN without any."""
    words = re.findall(r"[\w']+", text.lower())
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan


def tail_perplexity(logprobs: Sequence[float]) -> float:
    """Perplexity of the last `TAIL` share of the tokens, at least one."""
    if not logprobs:
        return math.inf
    count = max(1, math.ceil(len(logprobs) * TAIL))
    return perplexity(logprobs[-count:])


def perplexity(logprobs: Sequence[float]) -> float:
    """exp(−mean log-probability)."""
    if not logprobs:
        return math.inf
    nats = -sum(logprobs) / len(logprobs)
    return math.exp(nats) if nats < 700 else math.inf


def _repeated(items: Sequence[Hashable], n: int) -> float:
    grams = [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0
