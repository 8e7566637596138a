"""Draws from states, with the base's verdict on each: what harvest and curve have in common."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from steerheal.config import FilterSettings, PushSettings, SamplingSettings
from steerheal.filter.rules import judge
from steerheal.filter.scores import scored_by
from steerheal.models.generate import Draw, write
from steerheal.models.model import ChatModel
from steerheal.personas import Persona
from steerheal.records import Calibration, Completion, Verdict
from steerheal.state.values import State, entered

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""A batch's title and its rows to a bar that the callable advances."""


def unseen(_title: str, _rows: int) -> AbstractContextManager[Callable[[int], None]]:
    """No bar."""
    return nullcontext(lambda _: None)


@dataclass(frozen=True)
class Judge:
    """Draws from states, with the base's verdict on each."""

    chat: ChatModel
    persona: Persona
    calibration: Calibration
    push: PushSettings
    sampling: SamplingSettings
    rules: FilterSettings
    bar: Bar

    def __call__(
        self, states: Sequence[State], draws: Sequence[Draw]
    ) -> list[tuple[Completion, Verdict]]:
        """Writes them in one batch and judges what was written."""
        top = max((state.dose for state in states), key=abs)
        title = f"sampling, dose up to {top:.3g}" if top else "sampling"
        with self.bar(title, len(draws)) as progress, entered(self.chat, states) as writer:
            said, drawn = write(
                writer,
                draws,
                self.sampling,
                push=self.push,
                keep_states=True,
                keep_broken=True,
                progress=progress,
            )
        odds = self.rules.read_trait
        scored = scored_by(self.chat, said, self.persona, drawn, writer=writer, logodds=odds)
        found = judge(said, scored, self.persona, calibration=self.calibration, settings=self.rules)
        return list(zip(said, found, strict=True))
