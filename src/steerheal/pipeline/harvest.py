"""What a teacher writes in a round, judged: the walk's draws from a model and the filter."""

from functools import partial

from steerheal.config import DoseSettings, FilterSettings, PushSettings, SamplingSettings
from steerheal.filter.choose import chosen, values
from steerheal.models.model import ChatModel
from steerheal.personas import Persona
from steerheal.pipeline.judge import Bar, Judge, unseen
from steerheal.pipeline.walk import harvest
from steerheal.records import Calibration, Harvest
from steerheal.state.values import State


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
        dose: How the dose is walked, and how many completions are wanted.
        push: How the dose runs along a completion.
        sampling: How the teacher writes.
        rules: The filter's thresholds.
        seed: Of the draws.
        bar: Opens a bar for every batch.
    """
    choose = None
    if rules.best_of > 1:
        choose = partial(chosen, size=rules.best_of, values=values(rules, chat, persona, seed))
    return harvest(
        Judge(chat, persona, calibration, push, sampling, rules, bar),
        teacher,
        persona.prompts.train,
        dose,
        rows=sampling.rows,
        seed=seed,
        calibration=calibration,
        draws=rules.best_of,
        choose=choose,
    )
