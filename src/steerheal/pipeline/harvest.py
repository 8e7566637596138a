"""What a teacher writes in a round, judged: the walk's draws from a model and the filter."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from steerheal.config import DoseSettings, FilterSettings, PushSettings, SamplingSettings
from steerheal.filter.rules import judge
from steerheal.filter.scores import scored_by
from steerheal.models.generate import Draw, write
from steerheal.models.model import ChatModel
from steerheal.personas import Persona
from steerheal.pipeline.walk import harvest
from steerheal.records import Calibration, Completion, Harvest, Verdict
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


def harvested(
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
) -> Harvest:
    """The round's text, starved or fed; the teacher's dose is walked where it has one.

    Args:
        chat: The model, in no state.
        teacher: Who writes.
        persona: Its training prompts are answered; its poles are compared with.
        calibration: The filter's limits.
        dose: How the multiplier is walked, and how many completions are wanted.
        push: How the dose runs along a completion.
        sampling: How the teacher writes.
        rules: The filter's thresholds.
        seed: Of the draws.
        bar: Opens a bar for every batch.
    """
    return harvest(
        Judge(chat, persona, calibration, push, sampling, rules, bar),
        teacher,
        persona.prompts.train,
        dose,
        rows=sampling.rows,
        seed=seed,
        calibration=calibration,
    )
