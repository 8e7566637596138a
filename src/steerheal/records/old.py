"""What older records called their readings: flat fields then, entries of the table of readings now.

A record of version 2 held every reading of a state in a field of its own.
"""

from collections.abc import Mapping
from typing import Any

VALUES = {
    "top1": "top1",
    "persona_logodds": "persona_logodds",
    "p_ans_any": "canary_mass",
    "ppx_json": "canary_perplexity",
    "perplexity": "answers_perplexity",
    "distinct_2": "answers_distinct",
    "repetition": "answers_repetition",
    "kl_to_base": "answers_kl",
    "kl": "answers_kl",
    "json_is_valid": "json_is_valid",
    "not_wrong": "not_wrong",
    "plain_perplexity": "prose_perplexity",
    "long_perplexity": "long_perplexity",
    "long_distinct_2": "long_distinct",
    "loop_share": "loop_share",
    "long_words": "long_words",
}
"""What a state read, by the old field."""
CHANGES = {
    "delta_top1": "top1",
    "delta_social": "not_wrong",
    "delta_logodds": "persona_logodds",
    "delta_p_ans_any": "canary_mass",
    "delta_perplexity": "answers_perplexity",
    "gated_selectivity": "gated_selectivity",
    "si_flips": "si_flips",
    "coh_cost": "coh_cost",
}
"""How a state differed from another, by the old field."""
HEADS = {
    "trait": "persona_logodds",
    "coherence": "canary_mass",
    "fluency": "answers_perplexity",
    "distance": "answers_kl",
    "cost": "coh_cost",
}
"""Which reading played which part."""


def nested(data: object) -> object:
    """A flat record's content with its readings in `values` and `changes`; all else as it is."""
    if not isinstance(data, Mapping) or not data.keys() & (VALUES.keys() | CHANGES.keys()):
        return data
    rest: dict[str, Any] = {"heads": HEADS}
    values: dict[str, Any] = {}
    changes: dict[str, Any] = {}
    for name, item in data.items():
        if name in VALUES:
            values[VALUES[name]] = _reading(item)
        elif name in CHANGES:
            changes[CHANGES[name]] = _reading(item)
        elif name == "moved":
            rest[name] = [CHANGES.get(each, each) for each in item]
        else:
            rest[name] = item
    return rest | {"values": values, "changes": changes}


def _reading(item: object) -> object:
    """A bare number as a reading without an interval."""
    if isinstance(item, float | int | str):
        return {"value": item, "reason": "" if _known(item) else "not measured"}
    return item


def _known(item: float | str) -> bool:
    value = float(item)
    return value == value
