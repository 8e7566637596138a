"""The filter's limits on this model: set on what the unsteered base writes."""

from collections.abc import Callable

from steerheal import streams
from steerheal.config import FilterSettings, SamplingSettings
from steerheal.filter.rules import calibrated, judge
from steerheal.filter.scores import scored_by
from steerheal.models.generate import Draw, generate
from steerheal.models.model import ChatModel
from steerheal.personas import Persona
from steerheal.records import Calibrated
from steerheal.streams import stream


def seed_of(run: int) -> int:
    """The seed of the texts in a run of that seed."""
    return stream(run, streams.CALIBRATION)


def calibrate(
    chat: ChatModel,
    persona: Persona,
    sampling: SamplingSettings,
    settings: FilterSettings,
    *,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Calibrated:
    """The limits that the settings' shares of the base's own text give, and what passes them.

    Args:
        chat: The base.
        persona: Its training prompts are answered; its poles are compared with.
        sampling: How the base writes.
        settings: The shares, and the number of texts.
        seed: Of the texts.
        progress: Called with the number of texts written.
    """
    asked = persona.prompts.train
    draws = [
        Draw(asked[i % len(asked)], seed=seed * 1_000_003 + i)
        for i in range(settings.calibration_texts)
    ]
    said = generate(chat, draws, sampling, progress=progress)
    scored = scored_by(chat, said, persona, logodds=settings.trait > 0)
    limits = calibrated(said, scored, persona, settings)
    rules = settings.model_copy(update={"trait": 0.0})
    verdicts = judge(said, scored, persona, calibration=limits, settings=rules)
    passed = (item for item, verdict in zip(said, verdicts, strict=True) if verdict.kept)
    return Calibrated(limits=limits, coherent=tuple(passed))
