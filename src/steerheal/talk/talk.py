"""Sides in conversation: the same prompts and seeds, each with its own state and replies.

In: who can answer, who does, and what the user says. Out: replies, side by side.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from steerheal.config import SamplingSettings
from steerheal.models.generate import Draw
from steerheal.models.template import Message
from steerheal.talk.voices import Reply, Voices

Said = dict[str, list[Message]]
"""Conversations by their side."""
Watch = Callable[[Said], bool]
"""Given the conversations so far, with answers in the making, says whether these end there."""


def _nothing(_: Said) -> bool:
    return False


@dataclass
class Side:
    """One of those who talk."""

    who: str
    """As the user calls it: see `voices.KINDS`."""
    gate: float = 1.0
    dose: float = math.nan
    """Of a vector; that of its round where it is NaN."""
    before: tuple[Message, ...] = ()
    """The conversation so far."""
    replies: list[Reply] = field(default_factory=list)

    def afresh(self) -> "Side":
        """The same one, to whom nothing was said."""
        return Side(self.who, self.gate, self.dose)


@dataclass
class Talk:
    """A run's model with several conversations."""

    voices: Voices
    sampling: SamplingSettings
    seed: int
    """Of the next answers; it rises by one with every turn."""
    sides: dict[str, Side]

    def choose(self, place: str, who: str) -> str:
        """Puts somebody on a side, and says the name; all conversations start afresh.

        Raises:
            UserError: as `Voices.state`.
        """
        side = self.sides[place]
        name = self.voices.state(who, side.gate, side.dose).name
        side.who = who
        self.afresh()
        return name

    def afresh(self) -> None:
        """Forgets what was said."""
        self.sides = {place: side.afresh() for place, side in self.sides.items()}

    def say(self, text: str, watch: Watch = _nothing) -> list[Reply]:
        """What every side answers; all draw from the same seed.

        Raises:
            UserError: a conversation longer than the model's positions. Nothing was said then.
        """
        found = self._turn(self.sides, text, self.seed, watch)
        self.seed += 1
        return found

    def again(self, place: str, watch: Watch = _nothing) -> None:
        """A side answers its whole conversation anew, from the same seeds.

        Ended by `watch`, it keeps the answers that it had.

        Raises:
            UserError: as `say`; it keeps the answers that it had.
        """
        old = self.sides[place]
        new, ended = old.afresh(), False

        def seen(said: Said) -> bool:
            nonlocal ended
            ended = watch(said)
            return ended

        asked = [text for role, text in old.before if role == "user"]
        for text, reply in zip(asked, old.replies, strict=True):
            self._turn({place: new}, text, reply.seed, seen)
            if ended:
                return
        self.sides[place] = new

    def _turn(self, sides: Mapping[str, Side], text: str, seed: int, watch: Watch) -> list[Reply]:
        draws = {place: Draw(text, seed=seed, before=side.before) for place, side in sides.items()}
        turns = [
            (self.voices.state(side.who, side.gate, side.dose), draws[place])
            for place, side in sides.items()
        ]

        def seen(texts: Sequence[str]) -> bool:
            return watch(
                {
                    place: [*draw.turns, ("assistant", said)]
                    for (place, draw), said in zip(draws.items(), texts, strict=True)
                }
            )

        found = self.voices.answer(turns, self.sampling, seen)
        for (place, side), reply in zip(sides.items(), found, strict=True):
            side.before = (*draws[place].turns, ("assistant", reply.text))
            side.replies.append(reply)
        return found

    def transcript(self) -> dict[str, object]:
        """All conversations in plain values."""
        return {
            "run": str(self.voices.folder),
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


def facing(voices: Voices) -> dict[str, Side]:
    """The base on the left and the best round on the right."""
    return {"left": Side("base"), "right": Side(f"round {voices.last}")}


def _known(value: object) -> object:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
