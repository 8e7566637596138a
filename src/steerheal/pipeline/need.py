"""What a run needs, said before it is spent: memory for a model, and time for the rest of a run.

Both are estimates and say so. Memory: P parameters of b bytes are P·b of weights; a float32 run
keeps a second copy of the layers that a history is folded into, and a heal keeps its activations.
Time: every stage is counted in tokens that pass through the model, and the first one that was timed
gives the pace.
"""

import math

from steerheal.config import HealSettings, MeasureSettings, RunConfig
from steerheal.models.size import GB, Size, gigabytes, weights_bytes

PROCESS = 0.7 * GB
"""Python with torch and transformers, before any weight."""
PROMPT, SYSTEM, VIGNETTE, PLAIN = 40, 30, 110, 3_000
"""Tokens of a prompt, of a system prompt, of a vignette with its question, and of the canary and
the plain prose together."""
BACKWARD = 3
"""A training token costs this many read ones: forward, and backward twice as much."""
ACTIVATIONS = 20
"""Numbers kept per token, layer and hidden unit while a heal trains, in float32."""


def peak_bytes(size: Size, dtype: str, heal: HealSettings, tokens: int) -> float:
    """About the most memory that a run holds at once.

    Args:
        size: The model.
        dtype: Precision of its weights.
        heal: Its rows and its band decide what a heal keeps.
        tokens: Longest completion.
    """
    weights = weights_bytes(size.parameters, dtype)
    folded = weights * (heal.band[1] - heal.band[0]) if dtype == "float32" else 0.0
    rows = math.ceil(heal.rows / heal.accumulate)
    trained = rows * (PROMPT + tokens) * size.layers * size.hidden * ACTIVATIONS * 4
    return PROCESS + weights + folded + trained


def memory_line(size: Size, dtype: str, config: RunConfig, free: float) -> str:
    """One line: how large the model is, about what a run of it needs, and what there is."""
    weights = weights_bytes(size.parameters, dtype)
    peak = peak_bytes(size, dtype, config.heal, config.sampling.tokens)
    short = "" if peak <= free else ". That may not do: lower heal.rows, or take another dtype"
    return (
        f"{size.parameters / 1e6:,.0f} M parameters in {dtype}: {gigabytes(weights)} of weights; a "
        f"run needs about {gigabytes(peak)}, {gigabytes(free)} are free{short}"
    )


def reading_tokens(measure: MeasureSettings, vignettes: int) -> float:
    """Tokens of one evaluation: answers written and judged, vignettes, tasks, canary, prose."""
    thought = measure.think if measure.instrument == "forced_choice" else 0
    orders = {"two": 2, "cyclic": 7}[measure.orders] if measure.instrument == "forced_choice" else 1
    answers = measure.prompts * _written_and_judged(measure.tokens)
    essays = measure.long_prompts * 2 * (PROMPT + measure.long_tokens)
    replies = measure.json_prompts * (PROMPT + measure.tokens)
    held_out = measure.held_out_pairs * measure.prompts * 2 * (PROMPT + SYSTEM + measure.tokens)
    spilt = measure.control_prompts * 2 * (PROMPT + measure.control_tokens)
    own = held_out + spilt + measure.tasks * (PROMPT + measure.task_tokens)
    return answers + essays + replies + own + vignettes * (VIGNETTE * orders + thought) + PLAIN


def _written_and_judged(tokens: int) -> float:
    """An answer is written once, read under both poles, and read by the base."""
    return 2 * (PROMPT + tokens) + 2 * (PROMPT + SYSTEM + tokens)


def rest_tokens(config: RunConfig, vignettes: int) -> tuple[float, float]:
    """Tokens of what comes once after the base is read, and of every round."""
    drawn = _written_and_judged(config.sampling.tokens) + PROMPT + config.sampling.tokens
    check = config.check
    levels = len(check.doses) + (check.control and bool(check.doses))
    seen = min(vignettes, 7 * check.per_foundation) if check.per_foundation else vignettes
    sweep = levels * (check.prompts * _written_and_judged(check.tokens) + seen * VIGNETTE)
    once = config.filter.calibration_texts * drawn + sweep
    want = config.dose.want
    trained = want * config.heal.epochs * BACKWARD * (PROMPT + config.sampling.tokens)
    reads = reading_tokens(config.measure, vignettes) * (2 if config.read_steered else 1)
    # Draws that are dropped come on top of those that are wanted; the walk's are among them.
    harvest = want / config.dose.target * drawn
    vector = 2 * config.vector.contexts * (PROMPT + SYSTEM)
    return once, vector + curve_tokens(config) + harvest + trained + reads


def curve_tokens(config: RunConfig) -> float:
    """Tokens of a round's curve of doses, written once and read once by the base."""
    dose = config.dose
    if dose.start != "auto":
        return 0.0
    answer = PROMPT + min(dose.curve_tokens, config.sampling.tokens)
    return (1 + len(dose.curve)) * dose.curve_prompts * 2 * answer


def seconds_left(config: RunConfig, vignettes: int, base_seconds: float) -> float:
    """About how long a run goes on, after its base was read in `base_seconds`."""
    pace = base_seconds / reading_tokens(config.measure, vignettes)
    once, each = rest_tokens(config, vignettes)
    return pace * (once + config.rounds * each)


def time_line(config: RunConfig, vignettes: int, base_seconds: float) -> str:
    """One line: about how long the run goes on, as a range of half to twice the estimate."""
    left = seconds_left(config, vignettes, base_seconds)
    rounds = f"{config.rounds} round{'s' if config.rounds > 1 else ''}"
    return (
        f"about {_duration(left)} left for {rounds}, half or twice as long at worst: judged by "
        f"the base, which took {_duration(base_seconds)}"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3_600:.1f} h"
