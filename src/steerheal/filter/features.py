"""What can be read off one completion: the numbers behind every rule of the filter.

nll, entropy     means over tokens of −ln p_base and of the base's entropy, nats per token
stretch, flat    largest and smallest mean −ln p_base over sixteen tokens in a row: a place that
                 the base cannot follow, and one that it knows by heart, as in a loop
compression      bytes of the compressed text over its own: loops compress well
drift            share of characters whose class (script, digit, punctuation, symbol, …) is rare
                 in the base's own text
looped           tokens at the end that repeat those one period before them
kl, kl_spike     mean, and largest mean over eight tokens, of KL(steered‖base) in nats
similarity       share of the persona's own words in what is said in the first person
"""

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from steerheal.measure.fluency import char_repetition, distinct, tail_perplexity, word_repetition
from steerheal.models.push import SPIKE_TOKENS, repeats
from steerheal.personas import Persona
from steerheal.records import Completion

WINDOW = 16
"""Tokens of a stretch: long enough that one rare word does not decide it."""
RARE_CLASS = 0.01
"""A class of characters below this share of the base's own text is foreign to it."""


@dataclass(frozen=True)
class Scored:
    """What the unsteered base says of a completion, token by token, in nats."""

    logprobs: Sequence[float]
    entropies: Sequence[float]
    kls: Sequence[float] = ()
    """KL(steered‖base) where each token was drawn; empty when it is not known."""
    logodds: float = float("nan")
    """The completion's own persona log-odds, per token."""


@dataclass(frozen=True)
class Features:
    """The numbers of one completion."""

    nll: float
    entropy: float
    tail_perplexity: float
    stretch: float
    flat: float
    word_repetition: float
    char_repetition: float
    distinct_2: float
    compression: float
    tokens_per_word: float
    drift: float
    looped: int
    words: int
    kl: float
    kl_spike: float
    similarity: float
    logodds: float


def features_of(
    completion: Completion, scored: Scored, persona: Persona, known: Mapping[str, float]
) -> Features:
    """The numbers of a completion.

    Args:
        completion: What was written.
        scored: What the base says of it.
        persona: Whose text must not be recited.
        known: Share of each class of characters in the base's own text.
    """
    text, nats = completion.text, [-value for value in scored.logprobs]
    words = len(text.split())
    return Features(
        nll=_mean(nats),
        entropy=_mean(scored.entropies),
        tail_perplexity=tail_perplexity(list(scored.logprobs)),
        stretch=_window(nats, WINDOW, max),
        flat=_window(nats, WINDOW, min),
        word_repetition=word_repetition(text),
        char_repetition=char_repetition(text),
        distinct_2=distinct(text, 2),
        compression=_compression(text),
        tokens_per_word=len(completion.tokens) / max(1, words),
        drift=drift(text, known),
        looped=repeats(completion.tokens),
        words=words,
        kl=_mean(scored.kls),
        kl_spike=_window(scored.kls, SPIKE_TOKENS, max),
        similarity=similarity(text, persona),
        logodds=scored.logodds,
    )


def classes(texts: Iterable[str]) -> dict[str, float]:
    """Share of each class of characters in the texts."""
    counts = Counter(_class(letter) for text in texts for letter in text)
    total = counts.total()
    return {name: count / total for name, count in sorted(counts.items())}


def drift(text: str, known: Mapping[str, float]) -> float:
    """Share of the text's characters whose class is rare in the base's own text."""
    foreign = sum(known.get(_class(letter), 0.0) < RARE_CLASS for letter in text)
    return foreign / max(1, len(text))


def _class(letter: str) -> str:
    """A letter's script, any other character's general category."""
    kind = unicodedata.category(letter)
    if kind.startswith("L"):
        return unicodedata.name(letter, "UNNAMED").split()[0].lower()
    return "space" if kind in {"Zs", "Cc"} else kind


def similarity(text: str, persona: Persona) -> float:
    """Share of a pole's content words that first-person sentences of the text use."""
    said = {
        word
        for sentence in re.split(r"(?<=[.!?\n])\s*", text.lower())
        if FIRST_PERSON.search(sentence)
        for word in _content(sentence)
    }
    poles = [set(_content(pole.lower())) for pole in (persona.positive, persona.negative)]
    return max(len(said & pole) / max(1, len(pole)) for pole in poles)


FIRST_PERSON = re.compile(r"\b(?:i|my|me|myself)\b")
SHORT = 4
"""Words shorter than this carry no content."""
COMMON = frozenset({
    "about", "above", "been", "before", "being", "could", "every", "from", "have", "into", "people",
    "person", "should", "than", "that", "them", "then", "they", "this", "those", "what", "when",
    "where", "which", "while", "whom", "with", "would", "your",
})  # fmt: skip


def _content(text: str) -> list[str]:
    words = re.findall(r"[a-zà-ÿ]+", text)
    return [word for word in words if len(word) >= SHORT and word not in COMMON]


def _compression(text: str) -> float:
    raw = text.encode()
    return len(zlib.compress(raw, 9)) / len(raw) if raw else float("nan")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _window(values: Sequence[float], size: int, pick: Callable[[Iterable[float]], float]) -> float:
    """The largest or smallest mean over so many values in a row; of all, when there are fewer."""
    if len(values) < size:
        return _mean(values)
    return pick(_mean(values[i : i + size]) for i in range(len(values) - size + 1))
