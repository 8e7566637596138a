"""How the dose runs along a completion: where it begins, decay, a KL budget, backtracking.

The steered rows may have twins: the same tokens at dose 0 in the same batch, with a cache of their
own, so that every token's divergence from the unsteered model is known while it is written:
    kl_t = KL(steered‖base) of the distributions that token t is drawn from, in nats.

prompt     without it the prompt is read at dose 0 up to its last token, which the first token is
           drawn from
decay      dose_t = dose·s(t): s = 1, 1 − t/n, or 2^(−t/n)
budget     where kl_t is above it, the last token is read again at a lower dose, on a grid of
           eighths, until kl_t fits or the dose is 0. What stands before it was steered and stays,
           so that a dose of 0 can still be above the budget. For the first token that is the
           prompt's last one.
backtrack  where the end of the text repeats itself, or the mean of kl over a few tokens spikes, the
           tokens from there on are taken back and written again at a lower dose.

A row whose logits are not finite ends there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerheal.config import PushSettings
from steerheal.models.decode import Decoding
from steerheal.models.finite import dose_of, not_finite, overflowed
from steerheal.models.model import ChatModel
from steerheal.models.rows import Line
from steerheal.models.score import kl

T = TypeVar("T")

LEVELS = 8
"""Doses that the budget tries: this many equal steps down to 0."""
SPIKE_TOKENS = 8
"""Tokens over which a spike is averaged, and which it takes back."""
LONGEST_PERIOD = 24
"""Longest stretch of tokens whose repetition counts as a loop."""
LEAST_LOOP = 12
"""A loop repeats at least this many tokens, and two whole periods."""


@dataclass
class Row:
    """One completion in the making."""

    line: Line
    """What it is asked, and in which state."""
    dose: float
    """The state's."""
    keep_states: bool = False
    tokens: list[int] = field(default_factory=list)
    doses: list[float] = field(default_factory=list)
    """The dose that every token was drawn at."""
    kls: list[float] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    factor: float = 1.0
    """What the rewinds left of the dose."""
    rewinds: int = 0
    over: bool = False
    broken: bool = False
    """Over because its logits are not finite."""

    def last(self) -> int:
        """The token that is read next."""
        return self.tokens[-1] if self.tokens else self.line.parts[0][-1]

    def take_back(self, count: int, factor: float) -> None:
        """Forgets the last tokens, and lowers the dose of those that follow."""
        for trace in (self.tokens, self.doses, self.kls, self.states):
            del trace[len(trace) - min(count, len(trace)) :]
        self.factor *= factor
        self.rewinds += 1


def share_at(position: int, push: PushSettings) -> float:
    """s(t): what is left of the dose at this position of the completion."""
    match push.decay:
        case "constant":
            return 1.0
        case "linear":
            return max(0.0, 1 - position / push.decay_tokens)
        case "exponential":
            return 0.5 ** (position / push.decay_tokens)


def repeats(tokens: Sequence[int]) -> int:
    """How many tokens at the end repeat those one period before them; 0 if it is no loop."""
    for period in range(1, LONGEST_PERIOD + 1):
        run = 0
        while run + period < len(tokens) and tokens[-1 - run] == tokens[-1 - run - period]:
            run += 1
        if run >= max(LEAST_LOOP, 2 * period):
            return run
    return 0


def spiking(kls: Sequence[float], limit: float) -> int:
    """How many tokens at the end a spike takes back; 0 if there is none."""
    recent = kls[-SPIKE_TOKENS:]
    full = len(recent) == SPIKE_TOKENS
    return SPIKE_TOKENS if full and sum(recent) / SPIKE_TOKENS > limit else 0


class Pushed:
    """A batch of rows at their doses, with their twins where the push needs the base."""

    def __init__(self, chat: ChatModel, rows: list[Row], push: PushSettings) -> None:
        self.rows = rows
        self._chat, self._push = chat, push
        steered = any(row.dose for row in rows)
        self._twins = steered and (push.kl_budget > 0 or (push.backtrack and push.spike > 0))
        self.logits: Float[Tensor, "B V"] = torch.empty(0)
        """Of the steered rows, at the place of the next token."""
        self._hidden: Float[Tensor, "B W"] = torch.empty(0)
        self._kl: Float[Tensor, " B"] | None = None
        self._scales = [1.0] * len(rows)
        """What is left of every row's dose."""
        self._decoding = Decoding(chat, self._doubled([row.line for row in rows]))

    def start(self) -> None:
        """Reads what every row begins with."""
        scales = self._with_twins(self._scales)
        if self._push.prompt:
            read = self._decoding.start(scales)
        else:
            self._decoding.start([0.0] * len(scales))
            read = self._decoding.again(scales)
        self._look(read[:, -1].clone())
        self._fit()

    def end_broken(self, *, keep: bool) -> None:
        """Ends the rows whose logits are not finite.

        Raises:
            UserError: there are such rows, and they are not to be kept or have no dose.
        """
        found = overflowed(self.logits)
        if not found.any():
            return
        for row, broken in zip(self.rows, found.tolist(), strict=True):
            dose = dose_of(self._chat, row.line.state)
            if broken and not row.over and not (keep and dose):
                raise not_finite(self._chat, dose)
            row.broken = row.broken or (broken and not row.over)
            row.over = row.over or broken
        # A token is chosen for every row, and that of a row that is over is dropped.
        self.logits = self.logits.masked_fill(found[:, None], 0)

    def append(self, chosen: Int[Tensor, " B"], stops: Bool[Tensor, " B"], longest: int) -> None:
        """The rows' next tokens; a row is over at its stop token or at the longest length."""
        kls = [0.0] * len(self.rows) if self._kl is None else self._kl.tolist()
        columns = (chosen.tolist(), stops.tolist(), self._scales, kls)
        for i, (token, stop, scale, nats) in enumerate(zip(*columns, strict=True)):
            row = self.rows[i]
            if row.over:
                continue
            row.tokens.append(token)
            row.doses.append(row.dose * scale)
            row.kls.append(nats)
            if row.keep_states:
                row.states.append(self._hidden[i])
            row.over = stop or len(row.tokens) == longest
        if self._push.backtrack:
            self._take_back()

    def select(self, keep: Int[Tensor, " K"]) -> None:
        """Only these rows stay in the batch."""
        every = torch.cat([keep, keep + len(self.rows)]) if self._twins else keep
        self.rows = [self.rows[i] for i in keep.tolist()]
        self._decoding.select(every)

    def step(self) -> None:
        """Reads every row's last token."""
        ids = torch.tensor(self._doubled([[row.last()] for row in self.rows]))
        self._scales = [row.factor * share_at(len(row.tokens), self._push) for row in self.rows]
        read = self._decoding.on(ids.to(self._chat.device), scales=self._with_twins(self._scales))
        self._look(read[:, -1])
        self._fit()

    def _fit(self) -> None:
        """Lowers the dose of the token just read until its divergence is in the budget."""
        if not self._push.kl_budget or self._kl is None:
            return
        nominal, level = self._scales, torch.full((len(self.rows),), LEVELS)
        pushed = torch.tensor([row.dose * scale != 0
                               for row, scale in zip(self.rows, nominal, strict=True)])  # fmt: skip
        while True:
            assert self._kl is not None
            found = self._kl.cpu()
            above = ~(found <= self._push.kl_budget) & (level > 0) & pushed
            if not above.any():
                return
            # The divergence grows about as the square of the dose, which says where to look next.
            guess = level * (self._push.kl_budget / found).sqrt()
            guess = guess.where(found.isfinite(), level / 2).floor().long()
            level = torch.where(above, torch.minimum(guess, level - 1).clamp(min=0), level)
            self._scales = [
                scale * left / LEVELS for scale, left in zip(nominal, level.tolist(), strict=True)
            ]
            self._look(self._decoding.again(self._with_twins(self._scales))[:, -1])

    def _look(self, hidden: Float[Tensor, "B W"]) -> None:
        """Logits of the steered rows, and their divergence from their twins."""
        logits, count = self._chat.logits(hidden), len(self.rows)
        self._hidden, self.logits = hidden[:count], logits[:count]
        if self._twins:
            self._kl = kl(logits[:count].log_softmax(-1), logits[count:].log_softmax(-1))

    def _take_back(self) -> None:
        """Rewinds the rows whose end went wrong, in the rows and in the cache."""
        back = [self._broken(row) for row in self.rows]
        if not any(back):
            return
        for row, count in zip(self.rows, back, strict=True):
            if count:
                row.take_back(count, self._push.factor)
        # The token just chosen was not read yet, and the last one that stays is read again.
        self._decoding.take_back(self._doubled(back))

    def _broken(self, row: Row) -> int:
        if row.over or not row.dose * row.factor or row.rewinds >= self._push.rewinds:
            return 0
        looped = repeats(row.tokens)
        spiked = spiking(row.kls, self._push.spike) if self._twins and self._push.spike else 0
        return max(looped, spiked)

    def _doubled(self, items: list[T]) -> list[T]:
        return items * 2 if self._twins else items

    def _with_twins(self, scales: list[float]) -> list[float]:
        return [*scales, *([0.0] * len(scales))] if self._twins else scales
