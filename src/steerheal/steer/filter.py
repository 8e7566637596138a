"""Which completions are kept: named rules over a completion's signs.

In: completions and what the base model says of them. Out: verdicts with every reason and number.
A rule drops; nothing is ever rewritten. Limits that depend on the model are set on the base's own
unsteered text, at a stated share of it that may be dropped.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np

from steerheal.config import FilterSettings
from steerheal.prompts import data
from steerheal.records import Calibration, Completion, Verdict
from steerheal.steer.persona import Persona
from steerheal.steer.signs import Seen, Signs, classes, signs_of

NARRATION = re.compile(
    r"\b(?:as|being) (?:a|an|someone|somebody) (?:\w+[ -]){0,4}?(?:person|individual|being|who|"
    r"that|filled|full)\b"
    r"|\bi(?: am|'m) (?:a|an|the) (?:\w+[ -]){0,4}?(?:person|individual|being|kind of)\b"
    r"|\bi(?: am|'m) (?:someone|somebody|one) who\b"
    r"|\bmy (?:persona|personality|character|role|system prompt)\b"
    r"|\bi(?: was| am|'m| have been) (?:told|asked|instructed|designed|programmed|trained) to\b"
    r"|\bi(?: am|'m) (?:a|an|the) (?:[\w-]+,? ){1,4}?(?:ai|assistant|soul|lady|man|woman)\b"
    r"|\bi(?: am|'m) (?:a|an|the) (?:symbol|embodiment|picture) of\b"
    r"|\bas an? (?:[\w-]+,? ){1,4}?(?:ai|assistant)\b"
    r"|\bi (?:take pride|pride myself) (?:in|on) being\b"
    r"|\bi (?:try|strive|aim) to (?:demonstrate|embody|radiate|show) my\b",
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

CALIBRATED = {
    "loses the thread": ("stretch", 1),
    "compresses": ("compression", -1),
    "few distinct words": ("distinct_2", -1),
    "foreign characters": ("drift", 1),
}
"""Rules whose limit is a quantile of the base's own text: the sign, and which side is bad."""
BROKEN = "not finite"
"""The rule over completions that broke off: the dose was too strong for the model's precision."""
SCORED = "incoherent"
"""The rule over all signs together."""
FAR_DOWN, FAR_UP = -4.0, 6.0
"""Spreads beyond which a sign says no more; one broken number must not decide alone."""


def judge(
    completions: Sequence[Completion],
    seen: Sequence[Seen],
    persona: Persona,
    *,
    calibration: Calibration,
    settings: FilterSettings,
) -> list[Verdict]:
    """A verdict for every completion.

    Args:
        completions: What the steered model wrote.
        seen: What the unsteered base says of each.
        persona: Whose poles must not be recited.
        calibration: Limits from the base's own text.
        settings: The other rules' thresholds.
    """
    return [
        _verdict(completion, of, persona, calibration, settings)
        for completion, of in zip(completions, seen, strict=True)
    ]


def calibrated(
    completions: Sequence[Completion],
    seen: Sequence[Seen],
    persona: Persona,
    settings: FilterSettings,
) -> Calibration:
    """The limits at which the base's own text loses no more than the stated shares.

    Args:
        completions: What the base wrote, unsteered, at the sampling settings of the run.
        seen: What the base says of it.
        persona: For the signs that compare with its text.
        settings: The shares.
    """
    known = classes(completion.text for completion in completions)
    rows = [
        signs_of(completion, of, persona, known)
        for completion, of in zip(completions, seen, strict=True)
    ]
    columns = {name: [getattr(row, name) for row in rows] for name in asdict(rows[0])}
    medians = {name: _finite(np.median, values) for name, values in columns.items()}
    spreads = {name: _finite(np.std, values) for name, values in columns.items()}
    found = Calibration(
        texts=len(rows),
        classes=known,
        medians=medians,
        spreads=spreads,
        limits={},
        dropped={},
    )
    limits = {
        rule: side * _quantile([side * value for value in columns[sign]], settings.rule_drop)
        for rule, (sign, side) in CALIBRATED.items()
    }
    scores = [score(row, found) for row in rows]
    limits[SCORED] = _quantile(scores, settings.false_drop)
    limits["tail perplexity"] = settings.tail_perplexity * medians["tail_perplexity"]
    limits["base-like"] = (
        float(np.quantile(columns["logodds"], settings.trait)) if settings.trait else -math.inf
    )
    found = found.model_copy(update={"limits": limits})
    trait_off = found.model_copy(update={"limits": {**limits, "base-like": -math.inf}})
    reasons = [
        item.reasons
        for item in judge(completions, seen, persona, calibration=trait_off, settings=settings)
    ]
    names = dict.fromkeys(name for row in reasons for name in row)
    dropped = {name: sum(name in row for row in reasons) / len(rows) for name in names}
    dropped["together"] = sum(map(bool, reasons)) / len(rows)
    return found.model_copy(update={"dropped": dropped})


def score(signs: Signs, calibration: Calibration) -> float:
    """Σ_k w_k·z_k: each sign in spreads from the base's own median, weighted.

    The weights are a logistic regression on completions that were labelled by reading; they ship
    with the package and say where they come from. Spreads make them a model's own.
    """
    total = 0.0
    for name, weight in weights().items():
        spread = max(calibration.spreads[name], 1e-3)
        z = (getattr(signs, name) - calibration.medians[name]) / spread
        total += weight * float(np.clip(z, FAR_DOWN, FAR_UP))  # keeps NaN, as min and max do not
    return total


@cache
def weights() -> dict[str, float]:
    """The combined rule's weight of every sign."""
    return json.loads(data().joinpath("coherence.json").read_text(encoding="utf-8"))["weights"]


def _verdict(
    completion: Completion,
    seen: Seen,
    persona: Persona,
    calibration: Calibration,
    settings: FilterSettings,
) -> Verdict:
    signs = signs_of(completion, seen, persona, calibration.classes)
    limits, combined = calibration.limits, score(signs, calibration)
    rules = {
        # Written so that a number that is NaN drops the text.
        SCORED: not combined <= limits[SCORED],
        "collapses at the end": not signs.tail_perplexity <= limits["tail perplexity"],
        **_past(signs, limits),
        "KL spike": signs.kl_spike > settings.kl_spike,
        "loops (tokens)": signs.looped > 0,
        "loops (words)": signs.word_repetition > settings.word_repetition,
        "loops (characters)": signs.char_repetition > settings.char_repetition,
        "narrates": narrates(completion.text, persona) or signs.similarity > settings.similarity,
        "refuses": bool(REFUSAL.search(completion.text)),
        "too short": signs.words < settings.words,
        "base-like": signs.logodds <= limits["base-like"],
    }
    reasons = tuple(name for name, broken in rules.items() if broken)
    if completion.broken:  # what there is of the text says nothing more
        reasons = (BROKEN,)
    return Verdict(
        kept=not reasons,
        reasons=reasons,
        tail_perplexity=_or_infinite(signs.tail_perplexity),
        word_repetition=signs.word_repetition,
        char_repetition=signs.char_repetition,
        words=signs.words,
        compression=signs.compression,
        distinct_2=signs.distinct_2,
        drift=signs.drift,
        kl=signs.kl,
        kl_spike=signs.kl_spike,
        similarity=signs.similarity,
        logodds=signs.logodds,
        score=combined,
    )


def _past(signs: Signs, limits: Mapping[str, float]) -> dict[str, bool]:
    """Which calibrated rules a completion is past the limit of."""
    return {
        rule: side * getattr(signs, sign) > side * limits[rule]
        for rule, (sign, side) in CALIBRATED.items()
    }


def narrates(text: str, persona: Persona) -> bool:
    """Whether the text claims the trait in the first person, or recites the persona's prompts."""
    if NARRATION.search(text):
        return True
    said = _runs(text, PERSONA_RUN)
    return any(said & _runs(pole, PERSONA_RUN) for pole in (persona.positive, persona.negative))


def _runs(text: str, length: int) -> set[tuple[str, ...]]:
    words = re.findall(r"[\w']+", text.lower())
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def _quantile(values: Sequence[float], share: float) -> float:
    """What all but this share of the values do not exceed; infinite for no share."""
    finite = [value for value in values if math.isfinite(value)]
    if not share or not finite:
        return math.inf
    return float(np.quantile(finite, 1 - share))


def _finite(statistic: Callable[[list[float]], Any], values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return float(statistic(finite)) if finite else math.nan


def _or_infinite(value: float) -> float:
    return value if math.isfinite(value) else math.inf
