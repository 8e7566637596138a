"""Which completions are kept: named rules over a completion's numbers.

In: completions and the base model's reading of them. Out: verdicts with every reason and number.
A rule drops; nothing is ever rewritten.
"""

import math
import re
import statistics
from collections.abc import Sequence

from steerheal.config import FilterSettings
from steerheal.measure.fluency import char_repetition, tail_perplexity, word_repetition
from steerheal.records import Completion, Verdict
from steerheal.steer.persona import Persona

NARRATION = re.compile(
    r"\b(?:as|being) (?:a|an|someone|somebody) (?:\w+[ -]){0,4}?(?:person|individual|being|who|"
    r"that|filled|full)\b"
    r"|\bi(?: am|'m) (?:a|an|the) (?:\w+[ -]){0,4}?(?:person|individual|being|kind of)\b"
    r"|\bi(?: am|'m) (?:someone|somebody|one) who\b"
    r"|\bmy (?:persona|personality|character|role|system prompt)\b"
    r"|\bi (?:was|am|have been) (?:told|asked|instructed|designed|programmed|trained) to\b",
    re.IGNORECASE,
)
"""First-person claims instead of acting: "as someone who …", "I am a person who …"."""

REFUSAL = re.compile(
    r"\bas an? (?:ai|artificial intelligence|language model|large language model)\b"
    r"|\bi(?: am|'m) (?:just |only |simply )?an? (?:ai|artificial intelligence|language model|"
    r"computer program|machine)\b"
    r"|\bi(?: am|'m) (?:sorry|afraid),? (?:but )?(?:i|that i) (?:can(?:no|')t|am unable|"
    r"am not able|will not|won't)\b"
    r"|\bi (?:can(?:no|')t|am unable to|am not able to) "
    r"(?:assist|help|provide|fulfil|fulfill|comply|answer|engage|support)\b"
    r"|\bi (?:do not|don't) have (?:personal |any |real |human )*(?:feelings|emotions|opinions|"
    r"experiences|beliefs|preferences)\b",
    re.IGNORECASE,
)
"""Boilerplate in place of an answer."""

PERSONA_RUN = 5
"""Words in a row taken from the persona's text that count as narrating it."""


def judge(
    completions: Sequence[Completion],
    logprobs: Sequence[Sequence[float]],
    persona: Persona,
    *,
    limit: float,
    settings: FilterSettings,
) -> list[Verdict]:
    """A verdict for every completion.

    Args:
        completions: What the steered model wrote.
        logprobs: Each completion token's log-probability under the unsteered base, in nats.
        persona: Whose poles must not be recited.
        limit: Highest tail perplexity that passes.
        settings: The rules' thresholds.
    """
    return [
        _verdict(completion, list(tokens), persona, limit, settings)
        for completion, tokens in zip(completions, logprobs, strict=True)
    ]


def perplexity_limit(base_tails: Sequence[float], settings: FilterSettings) -> float:
    """The filter's limit: the setting times the median of the base's own tail perplexities."""
    return settings.tail_perplexity * statistics.median(base_tails)


def _verdict(
    completion: Completion,
    logprobs: list[float],
    persona: Persona,
    limit: float,
    settings: FilterSettings,
) -> Verdict:
    text = completion.text
    perplexity = tail_perplexity(logprobs)
    words, chars = word_repetition(text), char_repetition(text)
    count = len(text.split())
    rules = {
        "incoherent": not perplexity <= limit,
        "loops (words)": words > settings.word_repetition,
        "loops (characters)": chars > settings.char_repetition,
        "narrates": narrates(text, persona),
        "refuses": bool(REFUSAL.search(text)),
        "too short": count < settings.words,
    }
    reasons = tuple(name for name, broken in rules.items() if broken)
    return Verdict(
        kept=not reasons,
        reasons=reasons,
        tail_perplexity=perplexity if math.isfinite(perplexity) else math.inf,
        word_repetition=words,
        char_repetition=chars,
        words=count,
    )


def narrates(text: str, persona: Persona) -> bool:
    """Whether the text claims the trait in the first person, or recites the persona's prompts."""
    if NARRATION.search(text):
        return True
    said = _runs(text, PERSONA_RUN)
    return any(said & _runs(pole, PERSONA_RUN) for pole in (persona.positive, persona.negative))


def _runs(text: str, length: int) -> set[tuple[str, ...]]:
    words = re.findall(r"[\w']+", text.lower())
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}
