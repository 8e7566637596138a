"""The dose at the knee: the largest whose text is still as coherent as is asked for.

A teacher answers the same training prompts at every dose of a curve, in shared batches and from the
same seeds, and the filter's rules for coherence say which answers are coherent. The share, smoothed
so that it never rises with the dose, falls to `coherence` times the base's own share at the knee,
which is read off a line between the two doses around it.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from steerheal.config import DoseSettings, FilterSettings, PushSettings, SamplingSettings
from steerheal.filter.coherent import broken
from steerheal.measure.stats import share
from steerheal.models.generate import Draw
from steerheal.models.model import ChatModel
from steerheal.personas import Persona
from steerheal.pipeline.judge import Bar, Judge, unseen
from steerheal.records import Calibration, Curve, CurvePoint, Reading
from steerheal.state.values import State, base


def curve(
    chat: ChatModel,
    teacher: State,
    persona: Persona,
    calibration: Calibration,
    *,
    dose: DoseSettings,
    push: PushSettings,
    sampling: SamplingSettings,
    rules: FilterSettings,
    seed: int,
    bar: Bar = unseen,
) -> Curve:
    """Coherence at every dose of the curve, and the knee.

    Args:
        chat: The model, in no state.
        teacher: Who writes, at any dose.
        persona: Its first training prompts are answered.
        calibration: The filter's limits.
        dose: The curve's doses, prompts and tokens, and where the knee lies.
        push: How the dose runs along an answer.
        sampling: How the teacher writes.
        rules: The filter's thresholds.
        seed: Of the draws.
        bar: Opens a bar for every batch.
    """
    asked = persona.prompts.train[: dose.curve_prompts]
    tokens = min(dose.curve_tokens, sampling.tokens)
    judge = Judge(
        chat, persona, calibration, push, sampling.model_copy(update={"tokens": tokens}),
        rules.model_copy(update={"read_trait": False}),
        lambda _, rows: bar("curve of doses", rows),
    )  # fmt: skip

    def read(states: Sequence[State]) -> list[Reading]:
        draws = [
            Draw(prompt, state, seed * 1_000_003 + i)
            for state in range(len(states))
            for i, prompt in enumerate(asked)
        ]
        good = [not broken(verdict) for _, verdict in judge(states, draws)]
        size = len(asked)
        return [share(good[k * size : (k + 1) * size]) for k in range(len(states))]

    doses = (0.0, *sorted(set(dose.curve)))
    shares = read([teacher.at_dose(one) for one in doses])
    own = shares[0] if _rests_at_base(teacher) else read([base()])[0]
    return kneed(doses, shares, own, asked=dose.coherence, tokens=tokens)


def _rests_at_base(teacher: State) -> bool:
    """Whether the teacher without its vectors is the base itself."""
    return teacher.mapped(lambda leaf: replace(leaf, vectors=(), acts_from=None)) == base()


def kneed(
    doses: Sequence[float], shares: Sequence[Reading], own: Reading, *, asked: float, tokens: int
) -> Curve:
    """The curve that these shares make, with its knee.

    Args:
        doses: From 0 up.
        shares: Coherent answers at each.
        own: The base's own.
        asked: Share of the base's that the knee lies at.
        tokens: Longest answer.
    """
    smooth = falling([item.value for item in shares])
    level = asked * own.value
    outcome, knee = "holds", doses[-1]
    if smooth[0] < level:
        outcome, knee = "gone", doses[1]
    elif smooth[-1] < level:
        outcome, knee = "found", _crossing(doses, smooth, level)
    return Curve(
        outcome=outcome,
        dose=knee,
        asked=asked,
        level=level,
        base=own,
        tokens=tokens,
        points=tuple(
            CurvePoint(dose=at, coherent=item, smooth=value)
            for at, item, value in zip(doses, shares, smooth, strict=True)
        ),
    )


def falling(values: Sequence[float]) -> list[float]:
    """The least-squares fit that never rises: runs of values that do rise become their mean."""
    pools: list[tuple[float, int]] = []
    for value in values:
        pool = (value, 1)
        while pools and pools[-1][0] < pool[0]:
            (mean, size), (other, more) = pools.pop(), pool
            pool = ((mean * size + other * more) / (size + more), size + more)
        pools.append(pool)
    return [mean for mean, size in pools for _ in range(size)]


def _crossing(doses: Sequence[float], smooth: Sequence[float], level: float) -> float:
    """Where a line between two doses meets the level, the last of which lies below it."""
    for (low, above), (high, below) in pairwise(zip(doses, smooth, strict=True)):
        if below < level:
            return low + (high - low) * (above - level) / (above - below)
    raise AssertionError("the last dose lies below the level")
