"""Everyone who can answer in a run's model: states by name, and replies that the base has read.

In: a run, a state and a conversation. Out: replies. One turn at a time is answered, whoever asks:
a state's adapters and vectors are on the one model while it writes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import Lock

from steerheal.config import SamplingSettings
from steerheal.console import Console
from steerheal.errors import UserError
from steerheal.measure.fluency import word_repetition
from steerheal.measure.free import logodds
from steerheal.models.asking import asked
from steerheal.models.chat import decode
from steerheal.models.generate import Draw, write
from steerheal.models.model import ChatModel
from steerheal.models.push import Row, repeats
from steerheal.models.reordered import reorder
from steerheal.models.score import continuation_states, kl_between, token_logprobs
from steerheal.numbers import shown
from steerheal.personas import Persona
from steerheal.pipeline.history import history_of, round_of, student_of
from steerheal.records import Completion, RunRecord
from steerheal.state.fold import Gated
from steerheal.state.values import Plain, State, base, entered
from steerheal.state.vector import SteeringVector
from steerheal.store import round_folder

KINDS = "base, round [N], vector [N] or prompt"
"""Who can answer: the base, a round's student, its vector, the persona as a system prompt."""
Watch = Callable[[list[str]], bool]
"""Given what the answers are so far, says whether they end there."""


@dataclass(frozen=True)
class Reply:
    """One answer, and what the base makes of it."""

    text: str
    state: str
    """The name of who wrote it."""
    seed: int
    logodds: float
    """Persona log-odds, nats per token; NaN for an empty answer."""
    kl: float
    """KL(state‖base) per token, nats."""
    loops: bool
    """Whether it repeats itself."""

    @property
    def words(self) -> str:
        """What stands under it."""
        if math.isnan(self.kl):
            return "no answer that could be read"
        kl = round(self.kl, 3) + 0.0  # no minus before a zero
        trait = shown(self.logodds, signed=True)
        read = f"persona log-odds {trait} nats/token · KL to base {shown(kl)}"
        return f"{read} · LOOPS" if self.loops else read


@dataclass(frozen=True)
class Voices:
    """A run's model and who can answer in it."""

    chat: ChatModel
    record: RunRecord
    folder: Path
    last: int
    """The best round, from 1."""
    console: Console
    _one: Lock = field(default_factory=Lock)
    """Held while the model answers."""

    @cached_property
    def persona(self) -> Persona:
        """Whose log-odds are read."""
        return self.record.whose(self.folder)

    @cached_property
    def _adapters(self) -> tuple[Gated, ...]:
        return history_of(self.record, self.folder, len(self.record.rounds), 1.0)

    def names(self) -> list[str]:
        """Everyone, as `state` takes them."""
        folded = [row.round + 1 for row in self.record.rounds if row.outcome == "folded"]
        return [
            *("base", "prompt"),
            *(f"round {number}" for number in folded),
            *(f"vector {number}" for number in range(1, len(self.record.rounds) + 1)),
        ]

    def own_dose(self, number: int) -> float:
        """The dose at which a round's vector wrote the text that was trained on."""
        return self.record.rounds[number - 1].multiplier

    def state(self, who: str, gate: float, dose: float) -> State:
        """Somebody's state.

        Args:
            who: As in `KINDS`; without a number it is the best round.
            gate: Scale of every adapter, on top of the run's own.
            dose: Of a vector; NaN is that of its round.

        Raises:
            UserError: nobody of that name, or no such round.
        """
        kind, _, rest = who.strip().partition(" ")
        if rest and (kind not in ("round", "vector") or not rest.strip().isdecimal()):
            raise UserError(f"{who!r} is nobody here: {KINDS}.")
        number = int(rest or self.last)
        match kind:
            case "base":
                return base()
            case "prompt":
                return base().prompted(self.persona.positive, called=self.persona.name)
            case "round":
                number = round_of(self.record, self.folder, number, self.console)
                return self._student(number, gate)
            case "vector":
                return self._steered(number, gate, dose)
            case _:
                raise UserError(f"{who!r} is nobody here: {KINDS}.")

    def _student(self, number: int, gate: float) -> Plain:
        count = sum(row.outcome == "folded" for row in self.record.rounds[:number])
        return Plain(tuple(replace(item, gate=item.gate * gate) for item in self._adapters[:count]))

    def _steered(self, number: int, gate: float, dose: float) -> State:
        """The student of the round before, under the round's vector."""
        if not 1 <= number <= len(self.record.rounds):
            raise UserError(f"{self.folder} has {len(self.record.rounds)} rounds, no {number}.")
        vector = SteeringVector.load(round_folder(self.folder, number - 1) / "vector.safetensors")
        own = self.own_dose(number) if math.isnan(dose) else dose
        return self._student(number - 1, gate).steered(vector, own)

    def answer(
        self,
        turns: Sequence[tuple[State, Draw]],
        sampling: SamplingSettings,
        watch: Watch = lambda _: False,
    ) -> list[Reply]:
        """What every state answers, in the same batch; waits until the model is free.

        Args:
            turns: Who answers what, with its seed and what was said before.
            sampling: Longest answer and temperature.
            watch: Given the answers so far, after every token.

        Raises:
            UserError: a conversation longer than the model's positions.
        """
        states = [state for state, _ in turns]
        draws = [replace(draw, state=place) for place, (_, draw) in enumerate(turns)]
        texts = [""] * len(draws)

        def seen(rows: Sequence[Row]) -> None:
            for row in rows:
                texts[row.line.state] = decode(self.chat, row.tokens).strip()
            if watch(list(texts)):
                for row in rows:
                    row.over = True

        with self._one:
            with entered(self.chat, states) as reader:
                said, hidden = write(
                    reader, draws, sampling, keep_states=True, keep_broken=True, watch=seen
                )
            plain = continuation_states(
                self.chat,
                [
                    (asked(self.chat, draw.turns), one.tokens)
                    for draw, one in zip(draws, said, strict=True)
                ],
            )
            kls = [
                kl_between(self.chat, own.to(other), other, reader).mean().item()
                for own, other in zip(hidden, plain, strict=True)
            ]
            odds = self._logodds(draws, said)
        return [
            self._reply(state, one, kl, odd)
            for state, one, kl, odd in zip(states, said, kls, odds, strict=True)
        ]

    def _reply(self, state: State, said: Completion, kl: float, odds: float) -> Reply:
        limit = self.record.settings(self.folder).filter.word_repetition
        loops = bool(repeats(said.tokens)) or word_repetition(said.text) > limit
        read = bool(said.tokens) and not said.broken
        return Reply(
            said.text,
            state.name,
            said.seed,
            odds if read else math.nan,
            kl if read else math.nan,
            loops=loops and read,
        )

    def _logodds(self, draws: Sequence[Draw], said: Sequence[Completion]) -> list[float]:
        poles = [base().prompted(text) for text in (self.persona.positive, self.persona.negative)]
        with entered(self.chat, poles) as reader:
            pairs = [
                (asked(reader, draw.turns, state=pole), one.tokens)
                for pole in (0, 1)
                for draw, one in zip(draws, said, strict=True)
            ]
            logs = token_logprobs(reader, pairs)
        count = len(draws)
        return [
            logodds(up, down, one.tokens)
            for up, down, one in zip(logs[:count], logs[count:], said, strict=True)
        ]


def begun(folder: Path, record: RunRecord, console: Console) -> Voices:
    """A run's model, loaded.

    Raises:
        UserError: no folded round, or another model than the run's.
    """
    chat, _, last = student_of(record, folder, 0, 1.0, console)
    reorder(chat)
    return Voices(chat, record, folder, last, console)
