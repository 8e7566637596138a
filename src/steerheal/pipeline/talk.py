"""Two states of a run in conversation: the same prompts and seeds, each with its own replies.

In: a run, which states talk, and what the user says. Out: replies with what the base makes of them.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

from steerheal.config import SamplingSettings
from steerheal.console import Console
from steerheal.errors import UserError
from steerheal.measure.fluency import word_repetition
from steerheal.measure.free import logodds
from steerheal.models.asking import asked
from steerheal.models.generate import Draw, write
from steerheal.models.model import ChatModel
from steerheal.models.push import repeats
from steerheal.models.score import continuation_states, kl_between, token_logprobs
from steerheal.models.template import Message
from steerheal.personas import Persona
from steerheal.pipeline.history import history_of, round_of, student_of
from steerheal.records import RunRecord
from steerheal.state.values import Plain, State, base, entered
from steerheal.state.vector import SteeringVector
from steerheal.store import round_folder

KINDS = "base, round [N], vector [N] or prompt"
"""What can talk: the base, a round's student, its steering vector, the persona as system prompt."""


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


@dataclass
class Side:
    """One of the two who talk."""

    who: str
    """As the user calls it: see `KINDS`."""
    before: tuple[Message, ...] = ()
    """The conversation so far."""
    replies: list[Reply] = field(default_factory=list)


@dataclass
class Talk:
    """A run's model with two conversations."""

    chat: ChatModel
    record: RunRecord
    folder: Path
    last: int
    """The best round, from 1."""
    sampling: SamplingSettings
    seed: int
    """Of the next answers; it rises by one with every turn."""
    console: Console
    gate: float = 1.0
    dose: float = math.nan
    """Of the vectors; that of their round where it is NaN."""
    sides: dict[str, Side] = field(default_factory=dict)

    @property
    def persona(self) -> Persona:
        """Whose log-odds are read."""
        return self.record.whose(self.folder)

    def state(self, who: str) -> State:
        """What a side is, at the gate and the dose of now.

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
                return Plain(history_of(self.record, self.folder, number, self.gate))
            case "vector":
                return self._steered(number)
            case _:
                raise UserError(f"{who!r} is nobody here: {KINDS}.")

    def _steered(self, number: int) -> State:
        """The student of the round before, under the round's vector."""
        if not 1 <= number <= len(self.record.rounds):
            raise UserError(f"{self.folder} has {len(self.record.rounds)} rounds, no {number}.")
        own = self.record.rounds[number - 1].multiplier
        vector = SteeringVector.load(round_folder(self.folder, number - 1) / "vector.safetensors")
        before = Plain(history_of(self.record, self.folder, number - 1, self.gate))
        return before.steered(vector, own if math.isnan(self.dose) else self.dose)

    def choose(self, place: str, who: str) -> None:
        """Puts somebody on a side; both conversations start afresh.

        Raises:
            UserError: as `state`.
        """
        self.state(who)
        others = {name: Side(side.who) for name, side in self.sides.items()}
        self.sides = others | {place: Side(who)}

    def afresh(self) -> None:
        """Forgets what was said."""
        self.sides = {place: Side(side.who) for place, side in self.sides.items()}

    def say(self, text: str) -> list[Reply]:
        """What every side answers; both draw from the same seed.

        Raises:
            UserError: a conversation longer than the model's positions. Nothing was said then.
        """
        draws = [Draw(text, 0, self.seed, side.before) for side in self.sides.values()]
        states = [self.state(side.who) for side in self.sides.values()]
        found = [self._reply(state, draw) for state, draw in zip(states, draws, strict=True)]
        for side, draw, reply in zip(self.sides.values(), draws, found, strict=True):
            side.before = (*draw.turns, ("assistant", reply.text))
            side.replies.append(reply)
        self.seed += 1
        return found

    def _reply(self, state: State, draw: Draw) -> Reply:
        with state.entered(self.chat) as reader:
            written = write(reader, [draw], self.sampling, keep_states=True, keep_broken=True)
        said = written.completions[0]
        if said.broken or not said.tokens:
            return Reply(said.text, state.name, draw.seed, math.nan, math.nan, loops=False)
        plain = continuation_states(self.chat, [(asked(self.chat, draw.turns), said.tokens)])[0]
        mine = written.states[0].to(plain)
        kl = kl_between(self.chat, mine, plain, reader).mean().item()
        limit = self.record.settings(self.folder).filter.word_repetition
        return Reply(
            said.text,
            state.name,
            draw.seed,
            self._logodds(draw.turns, said.tokens),
            kl,
            loops=bool(repeats(said.tokens)) or word_repetition(said.text) > limit,
        )

    def _logodds(self, turns: list[Message], tokens: tuple[int, ...]) -> float:
        poles = [base().prompted(said) for said in (self.persona.positive, self.persona.negative)]
        with entered(self.chat, poles) as reader:
            pairs = [(asked(reader, turns, state=pole), tokens) for pole in (0, 1)]
            up, down = token_logprobs(reader, pairs)
        return logodds(up, down, tokens)

    def transcript(self) -> dict[str, object]:
        """Both conversations in plain values."""
        return {
            "run": str(self.folder),
            "temperature": self.sampling.temperature,
            "sides": {
                place: {
                    "who": side.who,
                    "turns": [{"role": role, "text": text} for role, text in side.before],
                    "replies": [
                        {name: _known(value) for name, value in vars(reply).items()}
                        for reply in side.replies
                    ],
                }
                for place, side in self.sides.items()
            },
        }


def begun(
    folder: Path, record: RunRecord, sampling: SamplingSettings, *, seed: int, console: Console
) -> Talk:
    """The base on the left and the best round on the right.

    Raises:
        UserError: no folded round, or another model than the run's.
    """
    chat, _, last = student_of(record, folder, 0, 1.0, console)
    talk = Talk(chat, record, folder, last, sampling, seed, console)
    talk.sides = {"left": Side("base"), "right": Side(f"round {last}")}
    return talk


def _known(value: object) -> object:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
