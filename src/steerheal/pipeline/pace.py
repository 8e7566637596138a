"""How fast this model works on this machine, by a few seconds of its own work.

What a run does most is done once or twice, in the run's own sizes: answers read and compared with
the whole vocabulary, tokens written in a small and a full batch, and steps of a heal. A step of a
batch costs a constant and a part per row, which the two batches tell apart.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from steerheal import prompts
from steerheal.config import HealSettings, RunConfig, SamplingSettings
from steerheal.heal.batches import Data
from steerheal.heal.train import heal_student
from steerheal.models.batch import shared_prefix
from steerheal.models.chat import prompt_ids, text_ids
from steerheal.models.generate import Draw, generate
from steerheal.models.model import ChatModel
from steerheal.models.score import Pair, continuation_states, readings
from steerheal.pipeline.stage_work import JUDGED
from steerheal.pipeline.work import Work
from steerheal.records import HealStep
from steerheal.tables import OWN_ENGINE

SHORT, LONG = 2, 6
"""Tokens of an answer whose times are subtracted: what is left are steps, without the prompts."""
SMALL = 4
"""The small batch is the full one divided by this."""
READ = 12
"""Answers that are read."""
UPDATES = 3
"""Steps of a heal, of which the first, which fills memory, does not count."""


@dataclass(frozen=True)
class Pace:
    """Seconds per unit of work."""

    read: float
    scored: float
    step: float
    sampled: float
    trained: float
    spent: float
    """Seconds that the probe took."""

    def seconds(self, work: Work) -> float:
        """About how long that much work takes."""
        return (
            work.read * self.read
            + work.scored * self.scored
            + work.steps * self.step
            + work.sampled * self.sampled
            + work.trained * self.trained
        )

    def words(self) -> str:
        """The pace in a sentence."""
        return (
            f"Measured in {self.spent:.1f} s: {1 / self.read:,.0f} tokens/s read, "
            f"{1 / self.trained:,.0f} trained; a forward that writes takes "
            f"{1e3 * self.step:.0f} ms and {1e3 * self.sampled:.2f} ms per row."
        )


NOMINAL = Pace(read=1.0, scored=0.32, step=20.0, sampled=3.8, trained=2.3, spent=0.0)
"""The embedded model's on a CPU, in tokens read: what a run's first stage takes scales it."""


def measured(chat: ChatModel, config: RunConfig) -> Pace:
    """The pace at the run's batch sizes and lengths; leaves the model and all seeds as they are.

    Args:
        chat: The model, in no state.
        config: Rows and tokens of the sampling, and the heal.
    """
    begun = time.perf_counter()
    asked = prompts.control_held_out()
    pairs = _pairs(chat, max(READ, config.heal.rows), config.sampling.tokens)
    with torch.random.fork_rng():
        read, scored = _reading(chat, pairs[:READ])
        step, sampled = _writing(chat, asked, config)
        trained = _healing(chat, pairs[: config.heal.rows], config.heal)
    return Pace(read, scored, step, sampled, trained, time.perf_counter() - begun)


def _pairs(chat: ChatModel, count: int, tokens: int) -> list[Pair]:
    """Prompts with pieces of the bundled prose for answers."""
    text = text_ids(chat, prompts.data().joinpath("plain.txt").read_text("utf-8"))
    asked = prompts.contexts()
    found = []
    for i in range(count):
        start = (i * tokens) % max(1, len(text) - tokens)
        found.append((prompt_ids(chat, asked[i % len(asked)]), text[start : start + tokens]))
    return found


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, the device's queue included."""
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


@torch.no_grad()
def _reading(chat: ChatModel, pairs: list[Pair]) -> tuple[float, float]:
    """Seconds per token read, and per distribution over the vocabulary."""
    states = continuation_states(chat, pairs)  # what is timed first pays for what is set up once
    read = _timed(lambda: continuation_states(chat, pairs), chat.device)

    def compared() -> None:
        for (_, rest), state in zip(pairs, states, strict=True):
            readings(chat, state, torch.tensor(rest, device=chat.device), state)

    looked = sum(len(rest) for _, rest in pairs) * JUDGED
    return read / _own(pairs), _timed(compared, chat.device) / looked


def _own(pairs: Sequence[Pair]) -> int:
    """Tokens of the pairs beyond what their prompts begin with in common."""
    shared = shared_prefix([prompt for prompt, _ in pairs])
    return sum(len(prompt) - shared + len(rest) for prompt, rest in pairs)


def _writing(chat: ChatModel, asked: Sequence[str], config: RunConfig) -> tuple[float, float]:
    """Seconds per forward of a batch that writes, and per row of it beside that."""

    def step(rows: int) -> float:
        draws = [Draw(asked[i % len(asked)], seed=i) for i in range(rows)]
        spent = [
            _timed(lambda most=most: generate(chat, draws, _long(config, most)), chat.device)
            for most in (SHORT, LONG)
        ]
        return max(0.0, spent[1] - spent[0]) / (LONG - SHORT)

    full = config.sampling.rows
    small = max(1, full // SMALL)
    whole, part = step(full), step(small)
    each = max(0.0, whole - part) / max(1, full - small)
    return max(0.0, whole - full * each), each


def _long(config: RunConfig, tokens: int) -> SamplingSettings:
    return config.sampling.model_copy(update={"tokens": tokens, "engine": OWN_ENGINE})


def _healing(chat: ChatModel, pairs: list[Pair], settings: HealSettings) -> float:
    """Seconds per token of an optimiser step of the heal that is asked for."""
    states = continuation_states(chat, pairs)
    marks: list[float] = []

    def done(_step: HealStep, _of: int) -> None:
        if chat.device.type == "cuda":
            torch.cuda.synchronize(chat.device)
        marks.append(time.perf_counter())

    heal_student(
        chat,
        pairs,
        states,
        settings.model_copy(update={"epochs": UPDATES, "held_out": 0.0}),
        teacher=states,
        anchor=Data(pairs, states),
        progress=done,
    )
    return (marks[-1] - marks[0]) / (len(marks) - 1) / _own(pairs)
