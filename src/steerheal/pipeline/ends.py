"""When the loop ends and which round is the one to use: pure functions of the rounds' records.

Trait, answer mass and KL on the evaluation prompts decide; what a run then reports of the chosen
round is read on prompts that they do not see. The trait that counts is what the student gained
beyond its unsteered control, where every folded round has one.
"""

import math
from collections.abc import Sequence
from typing import Literal

from steerheal.config import RunConfig
from steerheal.numbers import shown
from steerheal.records import Reading, RoundRecord

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
    found, trait = _gains([row for row in rounds if row.healed is not None])
    gains = [_known(gain) for gain in found]
    late = gains[-config.patience :] if config.patience else []
    before = gains[: len(gains) - len(late)]
    if late and before and max(late) <= max(before):
        return (
            f"no further gain: {shown(max(before), signed=True)} {unit} of {trait} was not "
            f"exceeded in the {len(late)} rounds up to {name}, patience {config.patience}"
        )
    return ""


def _gains(folded: Sequence[RoundRecord]) -> tuple[list[Reading], str]:
    """Each folded round's gain, and what it is a gain of: net of controls if all have one."""
    net = [row.over_control for row in folded]
    if all(gain is not None and not math.isnan(gain.value) for gain in net):
        return [gain for gain in net if gain is not None], "trait beyond the unsteered control"
    return [row.healed.gain for row in folded if row.healed is not None], "trait"


def _known(gain: Reading) -> float:
    """The gain; below every other where it is unknown."""
    return -math.inf if math.isnan(gain.value) else gain.value


def best_round(
    rounds: Sequence[RoundRecord], floor: float, budget: float = 0.0, unit: str = TOKEN
) -> tuple[int | None, str]:
    """The folded round that gained most trait among those that may be kept, if any gained.

    Those are the ones at the coherence floor that did not spend more than the KL budget; 0 is no
    budget, and an unknown KL is not within one. With the reason in words, and what the round cost:
    where the answer mass is blind to damage, its perplexity and KL still show it.
    """
    folded = [(done, done.healed) for done in rounds if done.healed is not None]
    gains, trait = _gains([done for done, _ in folded])
    above = [
        (done, read, gain)
        for (done, read), gain in zip(folded, gains, strict=True)
        if read.at_best >= floor
    ]
    fit = [item for item in above if not budget or item[0].kl_spent <= budget]
    limits = f"at the coherence floor {floor:g}" + (
        f" within the KL budget {budget:g}" if budget else ""
    )
    if not folded:
        return None, "no round was folded"
    if not fit:
        return None, f"none of {len(folded)} folded rounds is {limits}"
    done, read, gain = max(fit, key=lambda item: _known(item[2]))
    where = "vignettes" if read.led_by_foundation else "evaluation prompts"
    changed = f"{shown(gain, signed=True)} {unit} on the {where}"
    if not gain.value > 0:
        return None, f"no round {limits} gained {trait}; at best {changed}"
    low, dear = len(folded) - len(above), len(above) - len(fit)
    left = [f"{low} folded below the floor"] if low else []
    left += [f"{dear} folded beyond the budget"] if dear else []
    of = f"{len(fit)} {'round' if len(fit) == 1 else 'rounds'}"
    return done.round, (
        f"round {done.round + 1} gained the most {trait}, {changed}, of {of} "
        f"{'; '.join([limits, *left])}; "
        f"its perplexity is {read.perplexity:.1f}, KL spent {done.kl_spent:.2f} nats/token"
    )
