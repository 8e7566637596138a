"""When the loop ends and which round is the one to use: pure functions of the rounds' records.

What they look at, trait gain, answer mass and KL on the evaluation prompts, is chosen by them; what
a run then reports of the chosen round is read on prompts that they do not see.
"""

import math
from collections.abc import Sequence
from typing import Literal

from steerheal.config import RunConfig
from steerheal.records import RoundRecord, Summary

TOKEN = "nats/token"
"""Unit of a trait of free answers."""
Until = Literal["check1", "check2"]


def asked_end(done: RoundRecord, until: Until | None) -> str:
    """Why the run ends where the user asked it to; empty when nobody did."""
    if until is None:
        return ""
    check = {"check1": "check 1", "check2": "check 2"}[until]
    seen = [finding.outcome for finding in done.findings if finding.check == check]
    return f"ended after {check} of round {done.round + 1}, as asked: {' '.join(seen)}"


def stop_reason(rounds: Sequence[RoundRecord], config: RunConfig, unit: str = TOKEN) -> str:
    """Why the loop ends after the last of these rounds; empty when it goes on.

    `unit` is that of a change of the trait.
    """
    done, floor = rounds[-1], config.coherence_floor
    name = f"round {done.round + 1}"
    if done.outcome == "starved":
        return (
            f"{name} starved: {done.kept} completions survived the filter at the lowest "
            f"dose, {done.multiplier:.3g}"
        )
    if done.outcome == "rejected":
        return f"{name} rejected: {done.heal.reason if done.heal else 'no heal'}"
    if done.healed is not None and not done.healed.at_best >= floor:
        return f"coherence fell to {done.healed.coherence:.3f} of the base in {name}, floor {floor}"
    if config.kl_budget and done.kl_spent >= config.kl_budget:
        return (
            f"the KL budget is spent: {done.kl_spent:.2f} nats/token after {name}, "
            f"kl_budget {config.kl_budget:g}"
        )
    gains = [_gain(row.healed) for row in rounds if row.healed is not None]
    late = gains[-config.patience :] if config.patience else []
    if late and len(gains) > len(late) and max(late) <= max(gains[: -len(late)]):
        return (
            f"no further gain: {max(gains[: -len(late)]):+.3f} {unit} was not exceeded in the "
            f"{len(late)} rounds up to {name}, patience {config.patience}"
        )
    return ""


def _gain(read: Summary) -> float:
    """A state's trait gain; below every other where it is unknown."""
    value = read.gain.value
    return -math.inf if math.isnan(value) else value


def best_round(
    rounds: Sequence[RoundRecord], floor: float, budget: float = 0.0, unit: str = TOKEN
) -> tuple[int | None, str]:
    """The folded round with the largest trait gain among those that may be kept, if any gained.

    Those are the ones at the coherence floor that did not spend more than the KL budget; 0 is no
    budget, and an unknown KL is not within one. With the reason in words, and what the round cost:
    where the answer mass is blind to damage, its perplexity and KL still show it.
    """
    folded = [(done, done.healed) for done in rounds if done.healed is not None]
    above = [(done, read) for done, read in folded if read.at_best >= floor]
    fit = [(done, read) for done, read in above if not budget or done.kl_spent <= budget]
    limits = f"at the coherence floor {floor:g}" + (
        f" within the KL budget {budget:g}" if budget else ""
    )
    if not folded:
        return None, "no round was folded"
    if not fit:
        return None, f"none of {len(folded)} folded rounds is {limits}"
    done, read = max(fit, key=lambda item: _gain(item[1]))
    gain, where = read.gain, "vignettes" if read.led_by_foundation else "evaluation prompts"
    if not gain.value > 0:
        return None, f"no round {limits} raised the trait; at best {gain.value:+.3f}"
    low, dear = len(folded) - len(above), len(above) - len(fit)
    left = [f"{low} folded below the floor"] if low else []
    left += [f"{dear} folded beyond the budget"] if dear else []
    return done.round, (
        f"round {done.round + 1} has the largest trait gain, {gain.value:+.3f} [{gain.low:.3f}, "
        f"{gain.high:.3f}] {unit} on the {where}, of {len(fit)} rounds "
        f"{'; '.join([limits, *left])}; "
        f"its perplexity is {read.perplexity:.1f}, KL spent {done.kl_spent:.2f} nats/token"
    )
