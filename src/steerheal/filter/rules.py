"""Which completions are kept: named rules over a completion's features.

In: completions and what the base model says of them. Out: verdicts with every reason and number.
A rule drops; nothing is ever rewritten. Limits that depend on the model are set on the base's own
unsteered text, at a stated share of it that may be dropped.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import numpy as np

from steerheal.config import FilterSettings
from steerheal.filter.features import Features, Scored, classes, drift, features_of
from steerheal.models.thinking import thought_in
from steerheal.personas import Persona
from steerheal.prompts import data
from steerheal.records import Calibration, Completion, Verdict

Text = tuple[Completion, Features]
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
"""Rules whose limit is a quantile of the base's own text: the feature, and which side is bad."""
BROKEN = "not finite"
"""The rule over completions that broke off: the dose was too strong for the model's precision."""
THOUGHT = "thought"
"""The rule over completions that hold a thought, closed or not: it is no answer to learn."""
NARRATES, REFUSES, BASE_LIKE = "narrates", "refuses", "base-like"
"""The rules on what a text says, and not on how."""
SCORED = "incoherent"
"""The rule over all features together."""
FOLDS = 32
"""Parts that calibration texts are left out in, to see what fresh text loses."""
FAR_DOWN, FAR_UP = -4.0, 6.0
"""Spreads beyond which a feature says no more; one broken number must not decide alone."""


def judge(
    completions: Sequence[Completion],
    scored: Sequence[Scored],
    persona: Persona,
    *,
    calibration: Calibration,
    settings: FilterSettings,
) -> list[Verdict]:
    """A verdict for every completion.

    Args:
        completions: What the steered model wrote.
        scored: What the unsteered base says of each.
        persona: Whose poles must not be recited.
        calibration: Limits from the base's own text.
        settings: The other rules' thresholds.
    """
    rows = [
        features_of(completion, of, persona, calibration.classes)
        for completion, of in zip(completions, scored, strict=True)
    ]
    return [
        _verdict(completion, features, persona, calibration, settings)
        for completion, features in zip(completions, rows, strict=True)
    ]


def calibrated(
    completions: Sequence[Completion],
    scored: Sequence[Scored],
    persona: Persona,
    settings: FilterSettings,
) -> Calibration:
    """The limits at which fresh text of the base is expected to lose no more than the shares.

    Of n texts, 1/(n + 1) of fresh text is beyond the most extreme one: a smaller share than that
    cannot be promised, and the limit is that text's.

    Args:
        completions: What the base wrote, unsteered, at the sampling settings of the run.
        scored: What the base says of it.
        persona: For the features that compare with its text.
        settings: The shares.
    """
    pairs = zip(completions, scored, strict=True)
    texts = [(text, features_of(text, of, persona, {})) for text, of in pairs]
    found, places = _limited(texts, settings), np.arange(len(texts))
    outside: list[tuple[str, ...]] = []
    for left in np.array_split(places, min(len(texts), FOLDS)):
        limits = _limited([texts[i] for i in np.setdiff1d(places, left)], settings)
        outside += _reasons([texts[i] for i in left], persona, limits, settings)
    dropped = _shares(_reasons(texts, persona, found, settings))
    return found.model_copy(update={"dropped": dropped, "fresh": _shares(outside)})


def _limited(texts: Sequence[Text], settings: FilterSettings) -> Calibration:
    """The limits on these texts."""
    known = classes(completion.text for completion, _ in texts)
    rows = [_drifted(text, known) for text in texts]
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
    ruled = {
        rule: _limit([side * value for value in columns[feature]], settings.rule_drop)
        for rule, (feature, side) in CALIBRATED.items()
    }
    limits = {rule: side * ruled[rule][0] for rule, (_, side) in CALIBRATED.items()}
    ruled[SCORED] = _limit([score(row, found) for row in rows], settings.false_drop)
    limits[SCORED] = ruled[SCORED][0]
    limits["tail perplexity"] = settings.tail_perplexity * medians["tail_perplexity"]
    limits[BASE_LIKE] = (
        float(np.quantile(columns["logodds"], settings.trait)) if settings.trait else -math.inf
    )
    expected = {rule: share for rule, (_, share) in ruled.items()}
    asked = {**dict.fromkeys(CALIBRATED, settings.rule_drop), SCORED: settings.false_drop}
    wide = {rule: share for rule, share in expected.items() if share > asked[rule]}
    return found.model_copy(update={"limits": limits, "expected": expected, "too_few": wide})


def _drifted(text: Text, known: Mapping[str, float]) -> Features:
    """Its features, with what is foreign where these classes of characters are known."""
    completion, features = text
    return replace(features, drift=drift(completion.text, known))


def _reasons(
    texts: Sequence[Text], persona: Persona, calibration: Calibration, settings: FilterSettings
) -> list[tuple[str, ...]]:
    """Why each of the base's own texts is dropped, the trait rule apart."""
    limits = {**calibration.limits, BASE_LIKE: -math.inf}
    found, known = calibration.model_copy(update={"limits": limits}), calibration.classes
    return [
        _verdict(text[0], _drifted(text, known), persona, found, settings).reasons for text in texts
    ]


def _shares(reasons: Sequence[tuple[str, ...]]) -> dict[str, float]:
    """How many texts each rule drops, and all of them together."""
    names = dict.fromkeys(name for row in reasons for name in row)
    found = {name: sum(name in row for row in reasons) / len(reasons) for name in names}
    return found | {"together": sum(map(bool, reasons)) / len(reasons)}


def score(features: Features, calibration: Calibration) -> float:
    """Σ_k w_k·z_k: each feature in spreads from the base's own median, weighted.

    The weights are a logistic regression on completions that were labelled by reading; they ship
    with the package and say where they come from. Spreads make them a model's own.
    """
    total = 0.0
    for name, weight in weights().items():
        spread = max(calibration.spreads[name], 1e-3)
        z = (getattr(features, name) - calibration.medians[name]) / spread
        total += weight * float(np.clip(z, FAR_DOWN, FAR_UP))  # keeps NaN, as min and max do not
    return total


@cache
def weights() -> dict[str, float]:
    """The combined rule's weight of every feature."""
    return json.loads(data().joinpath("coherence.json").read_text(encoding="utf-8"))["weights"]


def _verdict(
    completion: Completion,
    features: Features,
    persona: Persona,
    calibration: Calibration,
    settings: FilterSettings,
) -> Verdict:
    limits, combined = calibration.limits, score(features, calibration)
    rules = {
        THOUGHT: not settings.thoughts and _thinks(completion),
        # Written so that a number that is NaN drops the text.
        SCORED: not combined <= limits[SCORED],
        "collapses at the end": not features.tail_perplexity <= limits["tail perplexity"],
        **_past(features, limits),
        "KL spike": features.kl_spike > settings.kl_spike,
        "loops (tokens)": features.looped > 0,
        "loops (words)": features.word_repetition > settings.word_repetition,
        "loops (characters)": features.char_repetition > settings.char_repetition,
        NARRATES: narrates(completion.text, persona) or features.similarity > settings.similarity,
        REFUSES: bool(REFUSAL.search(completion.text)),
        "too short": features.words < settings.words,
        BASE_LIKE: features.logodds <= limits[BASE_LIKE],
    }
    reasons = tuple(name for name, broken in rules.items() if broken)
    if completion.broken:  # what there is of the text says nothing more
        reasons = (BROKEN,)
    return Verdict(
        kept=not reasons,
        reasons=reasons,
        tail_perplexity=_or_infinite(features.tail_perplexity),
        word_repetition=features.word_repetition,
        char_repetition=features.char_repetition,
        words=features.words,
        compression=features.compression,
        distinct_2=features.distinct_2,
        drift=features.drift,
        kl=features.kl,
        kl_spike=features.kl_spike,
        similarity=features.similarity,
        logodds=features.logodds,
        score=combined,
    )


def _past(features: Features, limits: Mapping[str, float]) -> dict[str, bool]:
    """Which calibrated rules a completion is past the limit of."""
    return {
        rule: side * getattr(features, feature) > side * limits[rule]
        for rule, (feature, side) in CALIBRATED.items()
    }


def _thinks(completion: Completion) -> bool:
    """By its tokens, which know what the template opened, or by its text alone."""
    return bool(completion.thought or thought_in(completion.text))


def narrates(text: str, persona: Persona) -> bool:
    """Whether the text claims the trait in the first person, or recites the persona's prompts."""
    if NARRATION.search(text):
        return True
    said = _runs(text, PERSONA_RUN)
    return any(said & _runs(pole, PERSONA_RUN) for pole in (persona.positive, persona.negative))


def _runs(text: str, length: int) -> set[tuple[str, ...]]:
    words = re.findall(r"[\w']+", text.lower())
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def _limit(values: Sequence[float], share: float) -> tuple[float, float]:
    """The lowest value that at most this share of fresh ones is expected to exceed, and that share.

    Infinite for no share; where so small a share takes more values, the highest of them.
    """
    finite = sorted(value for value in values if math.isfinite(value))
    if not share or not finite:
        return math.inf, 0.0
    most = len(finite) + 1
    # A hair less, so that 0.05 of 20 is exactly one.
    place = min(len(finite), math.ceil(most * (1 - share) - 1e-9))
    return finite[place - 1], (most - place) / most


def _finite(statistic: Callable[[list[float]], Any], values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return float(statistic(finite)) if finite else math.nan


def _or_infinite(value: float) -> float:
    return value if math.isfinite(value) else math.inf
