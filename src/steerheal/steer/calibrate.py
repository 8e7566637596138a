"""Doses at equal divergence: the dose whose KL to the unsteered model hits a target.

    p95(c) = 95th percentile over positions of KL(model under c·v ‖ model), nats per token
on completions that the unsteered model wrote. Sought is the least c with p95(c) = target. Several
doses go through one batch, rows = texts × doses, and the bracket closes in a few
batches: KL grows about as c², so that between two points it is read off a line in ln c and ln p95.

It knows states, not methods: whatever has a dose can be calibrated.

Source: iso-KL calibration, github.com/wassname/isokl_steering_calibration.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch

from steerheal.measure.free import answer_pairs
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states, kl_between
from steerheal.records import Completion, Record
from steerheal.state.values import State, entered

Outcome = Literal["found", "too weak", "too strong", "not finite", "jumps"]
Measure = Callable[[Sequence[float]], list["Probe"]]
"""A batch of doses to their probes, in the order given."""
TARGET = 1.0
"""Nats of p95 that the reference recipe calibrates to."""
PERCENTILE = 0.95
SPAN = (1 / 16, 16.0)
"""Least and largest dose tried, unless the caller says otherwise."""
FAN = 6
"""Doses of the first batch, in equal steps of ln c."""
CLOSER = (-0.3, 0.0, 0.3)
"""Doses of later batches: shares of the way from the guess to the bracket's ends."""
TOLERANCE = 0.02
"""Relative error of p95 at which the search ends."""
BATCHES = 6
"""Most batches; a smooth curve needs two or three."""


class Probe(Record):
    """One dose that was tried."""

    dose: float
    kl: float
    """p95 over positions of the KL to the unsteered model, nats per token."""


class DoseSearch(Record):
    """What a search for a target KL found, and everything it tried."""

    outcome: Outcome
    target: float
    dose: float
    """NaN unless found."""
    kl: float
    """Measured p95 at the dose; NaN unless found."""
    low: float
    """Largest dose tried below the target before it is first reached."""
    high: float
    """Least dose tried that reaches the target."""
    tried: tuple[Probe, ...]
    """Ascending."""

    def words(self) -> str:
        """The outcome in one sentence."""
        least, most = self.tried[0], self.tried[-1]
        match self.outcome:
            case "found":
                return f"p95 of KL is {self.kl:.3g} nats at {self.dose:.3g}"
            case "too weak":
                return (
                    f"p95 of KL reaches {most.kl:.3g} nats at {most.dose:.3g}, the largest "
                    f"dose tried, and not {self.target:g}"
                )
            case "too strong":
                return (
                    f"p95 of KL is {least.kl:.3g} nats already at {least.dose:.3g}, the "
                    f"least dose tried; the target is {self.target:g}"
                )
            case "not finite":
                return f"p95 of KL is not finite before it reaches {self.target:g} nats"
            case "jumps":
                return (
                    f"p95 of KL jumps across {self.target:g} nats between {self.low:.3g} and "
                    f"{self.high:.3g}"
                )


def probe(
    chat: ChatModel, state: State, texts: Sequence[Completion], doses: Sequence[float]
) -> list[Probe]:
    """p95 at every dose, in the order given, all of them in the same batches.

    Args:
        chat: The model, in no state.
        state: What is steered, at any dose.
        texts: What it wrote at dose 0.
        doses: The doses that are tried.
    """
    return _gauge(chat, state, texts)(doses)


def calibrate(
    chat: ChatModel,
    state: State,
    texts: Sequence[Completion],
    target: float = TARGET,
    *,
    span: tuple[float, float] = SPAN,
    tolerance: float = TOLERANCE,
) -> DoseSearch:
    """The least dose whose p95 is the target, to within the tolerance.

    Args:
        chat: The model, in no state.
        state: What is steered, at any dose.
        texts: Completions that it wrote at dose 0.
        target: Nats per token.
        span: Least and largest dose tried.
        tolerance: Relative error of the measured p95.
    """
    return search(_gauge(chat, state, texts), target, span=span, tolerance=tolerance)


def search(
    measure: Measure,
    target: float,
    *,
    span: tuple[float, float] = SPAN,
    tolerance: float = TOLERANCE,
) -> DoseSearch:
    """Closes a bracket around the target, a batch of doses at a time; always ends.

    Args:
        measure: What reads a batch.
        target: Above 0.
        span: Least and largest dose.
        tolerance: Relative error of p95 at which a dose is taken.
    """
    assert target > 0 and 0 < span[0] < span[1], f"target {target}, span {span}"
    fan = [span[0] * (span[1] / span[0]) ** (k / (FAN - 1)) for k in range(FAN)]
    tried: list[Probe] = []
    for _ in range(BATCHES):
        tried = sorted([*tried, *measure(fan)], key=lambda item: item.dose)
        low, high = _bracket(tried, target)
        if high is None:
            return _ended("too weak", target, tried)
        if low is None:
            known = math.isfinite(high.kl)
            return _ended("too strong" if known else "not finite", target, tried)
        best = min((low, high), key=lambda item: _error(item, target))
        if _error(best, target) <= tolerance:
            return _ended("found", target, tried, best)
        fan = _closer(low, high, target)
    _, high = _bracket(tried, target)
    assert high is not None, "the bracket only closes"
    return _ended("jumps" if math.isfinite(high.kl) else "not finite", target, tried)


def _gauge(chat: ChatModel, state: State, texts: Sequence[Completion]) -> Measure:
    """What reads p95; the unsteered states are computed once."""
    assert texts, "no texts to calibrate on"
    with state.at_dose(0.0).entered(chat) as rest:
        plain = torch.cat(continuation_states(rest, answer_pairs(rest, texts)))

    @torch.no_grad()
    def measure(doses: Sequence[float]) -> list[Probe]:
        with entered(chat, [state.at_dose(c) for c in doses]) as reader:
            pairs = [pair for i in range(len(doses)) for pair in answer_pairs(reader, texts, i)]
            steered = torch.cat(continuation_states(reader, pairs))
        divergences = kl_between(rest, steered, plain.repeat(len(doses), 1), reader)
        rows = divergences.float().cpu().view(len(doses), -1)
        levels = rows.quantile(PERCENTILE, dim=1).tolist()
        return [Probe(dose=c, kl=kl) for c, kl in zip(doses, levels, strict=True)]

    return measure


def _bracket(tried: Sequence[Probe], target: float) -> tuple[Probe | None, Probe | None]:
    """The last probe below the target and the first that is not; NaN is not below."""
    if not tried[0].kl < target:
        return None, tried[0]
    for low, high in pairwise(tried):
        if not high.kl < target:
            return low, high
    return tried[-1], None


def _closer(low: Probe, high: Probe, target: float) -> list[float]:
    """Doses around where the target should be, inside the bracket."""
    ends = (math.log(low.dose), math.log(high.dose))
    share = 0.5
    if low.kl > 0 and math.isfinite(high.kl):
        share = math.log(target / low.kl) / math.log(high.kl / low.kl)
        # A guess at an end would try that end again.
        share = min(max(share, 0.02), 0.98)
    guess = ends[0] + share * (ends[1] - ends[0])
    return [
        math.exp(guess + part * (ends[1] - guess if part > 0 else guess - ends[0]))
        for part in CLOSER
    ]


def _error(item: Probe, target: float) -> float:
    return abs(item.kl / target - 1) if math.isfinite(item.kl) else math.inf


def _ended(
    outcome: Outcome,
    target: float,
    tried: Sequence[Probe],
    best: Probe | None = None,
) -> DoseSearch:
    low, high = _bracket(tried, target)
    return DoseSearch(
        outcome=outcome,
        target=target,
        dose=best.dose if best else math.nan,
        kl=best.kl if best else math.nan,
        low=low.dose if low else math.nan,
        high=high.dose if high else math.nan,
        tried=tuple(tried),
    )
