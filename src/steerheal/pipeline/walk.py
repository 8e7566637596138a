"""walk-C: a round's training data at the highest dose whose completions survive the filter.

The dose walks down from its start until enough of a mixed-dose batch survives; then more
batches top up until enough are kept, or the round ends as starved. Text comes from a state, the
teacher; one without a vector has no dose to walk, and the walk is one step.
"""

import math
from collections.abc import Callable, Sequence

from steerheal.config import DoseSettings
from steerheal.errors import UserError
from steerheal.models.generate import Draw
from steerheal.records import Calibration, Completion, Harvest, Judged, Verdict, WalkStep
from steerheal.state.values import State

SPARE = 1.25
"""Draws of a top-up over those that would be enough at the walk's survival."""
Drawer = Callable[[Sequence[State], Sequence[Draw]], list[tuple[Completion, Verdict]]]
"""States to enter together, and draws in them, to completions with the base's verdicts."""
Choose = Callable[[Sequence[Judged]], list[Judged]]
"""Draws at the accepted dose, with those marked that are passed over."""
Batch = Callable[[int, float, str], list[Judged]]
"""Draws, at doses, under a name."""


def harvest(
    draw: Drawer,
    teacher: State,
    prompts: Sequence[str],
    settings: DoseSettings,
    *,
    rows: int,
    seed: int,
    calibration: Calibration,
    draws: int = 1,
    choose: Choose | None = None,
) -> Harvest:
    """Walks the dose down, then tops up; always ends in a record, starved or fed.

    Args:
        draw: Writes and judges.
        teacher: Whose text it is, at any dose.
        prompts: The training prompts, used in turn.
        settings: Start, step, sweep, target survival, and how many are wanted.
        rows: Draws per batch; a top-up draws fewer where fewer are likely to be enough.
        seed: First draw's seed; every draw has its own.
        calibration: The filter's limits, recorded beside the verdicts, and what the base's own text
            survives.
        draws: How often in a row a prompt is drawn; it counts as kept where one of them is.
        choose: Which of them is trained on; all that are kept when not given.

    Raises:
        UserError: a dose to walk, and no number to start at.
    """
    walked = bool(teacher.dose)
    needed = settings.target * calibration.survival
    source = _Draws(prompts, settings.sweep if walked else (1.0,), seed, draws)
    rows = max(draws, rows - rows % draws)

    def batch(count: int, whole: float, name: str) -> list[Judged]:
        doses = [share * whole for share in settings.sweep]
        states = [teacher.at_dose(dose) for dose in doses] if walked else [teacher]
        return [
            Judged(completion=completion, verdict=verdict, batch=name)
            for completion, verdict in draw(states, source.take(count))
        ]

    start = _start(settings) if walked else 0.0
    judged, walk = _walked_down(batch, settings, rows, start=start, needed=needed)
    last = judged[-walk[-1].drawn :]
    more = _topped_up(batch, settings, rows, dose=walk[-1].multiplier, last=last, draws=draws)
    pool = [*last, *more]
    have = _answered(pool, draws)
    if choose is not None:
        pool = choose(pool)
    return Harvest(
        outcome="fed" if have >= settings.minimum else "starved",
        multiplier=walk[-1].multiplier,
        needed=needed,
        walk=tuple(walk),
        judged=(*judged[: -walk[-1].drawn], *pool),
        perplexity_limit=calibration.limits["tail perplexity"],
        calibration=calibration,
    )


def _start(settings: DoseSettings) -> float:
    if isinstance(settings.start, str):
        raise UserError("dose.start is auto: the walk needs the dose that was found, as a number.")
    return settings.start


def _walked_down(
    batch: Batch, settings: DoseSettings, rows: int, *, start: float, needed: float
) -> tuple[list[Judged], list[WalkStep]]:
    """Batches at lower and lower doses, until enough of one survives; one where it is 0."""
    judged: list[Judged] = []
    walk: list[WalkStep] = []
    for step in range(settings.walks if start else 1):
        dose = start * settings.step**step
        drawn = batch(rows, dose, f"walk-{step}")
        judged += drawn
        kept = sum(row.verdict.kept for row in drawn)
        walk.append(WalkStep(multiplier=dose, drawn=len(drawn), kept=kept))
        if kept >= needed * len(drawn):
            break
    return judged, walk


def _answered(judged: Sequence[Judged], draws: int) -> int:
    """Of so many draws in a row each, how many have a kept one."""
    starts = range(0, len(judged), draws)
    return sum(any(row.verdict.kept for row in judged[i : i + draws]) for i in starts)


def _topped_up(
    batch: Batch,
    settings: DoseSettings,
    rows: int,
    *,
    dose: float,
    last: Sequence[Judged],
    draws: int,
) -> list[Judged]:
    """More batches at the last dose, until as many are kept as are wanted.

    Each draws as many as are likely to be enough, and no more: a draw costs more than anything
    else.
    """
    judged: list[Judged] = []
    have = _answered(last, draws)
    survive = max(have * draws / len(last), draws / rows)
    for number in range(1, settings.batches * draws):
        if have >= settings.want:
            break
        count = min(rows, draws * math.ceil(SPARE * (settings.want - have) / survive))
        drawn = batch(count, dose, f"top-up-{number}")
        judged += drawn
        have += _answered(drawn, draws)
    return judged


class _Draws:
    """Prompts, doses and seeds in turn: every prompt meets every dose before any pair repeats.

    A pair is drawn so many times in a row.
    """

    def __init__(
        self, prompts: Sequence[str], sweep: Sequence[float], seed: int, times: int
    ) -> None:
        self._prompts, self._sweep, self._seed, self._count = prompts, sweep, seed, 0
        self._times = times

    def take(self, rows: int) -> list[Draw]:
        draws = []
        for _ in range(rows):
            lap, place = divmod(self._count // self._times, len(self._prompts))
            state = (place + lap) % len(self._sweep)
            draws.append(Draw(self._prompts[place], state, self._seed * 1_000_003 + self._count))
            self._count += 1
        return draws
