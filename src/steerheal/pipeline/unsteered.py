"""The unsteered control's text: what a round's student answers by itself to the kept prompts.

The i-th text answers the prompt of the i-th kept one, so that the same heal on it holds out the
same prompts and takes the same steps in the same order. The filter's rules are the kept text's, but
for that on the trait. Where the student is the base, what it wrote for the filter's calibration is
taken first.
"""

from collections import defaultdict
from collections.abc import Sequence

from steerheal.config import FilterSettings, PushSettings, SamplingSettings
from steerheal.models.generate import Draw
from steerheal.models.model import ChatModel
from steerheal.personas import Persona
from steerheal.pipeline.judge import Bar, Judge, unseen
from steerheal.records import Calibrated, Completion, Unsteered
from steerheal.state.values import State, base


def unsteered(
    chat: ChatModel,
    student: State,
    persona: Persona,
    prompts: Sequence[str],
    calibrated: Calibrated,
    *,
    tries: int,
    sampling: SamplingSettings,
    rules: FilterSettings,
    seed: int,
    bar: Bar = unseen,
) -> Unsteered:
    """An answer to every prompt that the rules let through.

    Args:
        chat: The model, in no state.
        student: Who writes.
        persona: Whose poles the filter compares with.
        prompts: What is answered; one that stands twice is answered twice.
        calibrated: The filter's limits, and the text that they were set on.
        tries: Most draws of an answer; where none passes the last one stands.
        sampling: How the student writes.
        rules: The filter's thresholds.
        seed: Of the draws.
        bar: Opens a bar for every batch.
    """
    rules = rules.model_copy(update={"read_trait": False, "trait": 0.0})
    judge = Judge(chat, persona, calibrated.limits, PushSettings(), sampling, rules, bar)
    texts = _written_already(prompts, calibrated.coherent if student == base() else ())
    lacking = [place for place in range(len(prompts)) if place not in texts]
    reused, drawn = len(texts), 0
    for _ in range(tries):
        if not lacking:
            break
        draws = [
            Draw(prompts[place], seed=seed * 1_000_003 + drawn + i)
            for i, place in enumerate(lacking)
        ]
        drawn += len(draws)
        found = dict(zip(lacking, judge([student], draws), strict=True))
        texts |= {place: completion for place, (completion, _) in found.items()}
        lacking = [place for place, (_, verdict) in found.items() if not verdict.kept]
    return Unsteered(
        texts=tuple(texts[place] for place in range(len(prompts))),
        reused=reused,
        drawn=drawn,
        unfiltered=len(lacking),
    )


def _written_already(
    prompts: Sequence[str], written: Sequence[Completion]
) -> dict[int, Completion]:
    """Texts that answer some of the prompts, by the prompt's place; none is taken twice."""
    free = defaultdict[str, list[Completion]](list)
    for completion in written:
        free[completion.prompt].append(completion)
    return {place: free[asked].pop(0) for place, asked in enumerate(prompts) if free[asked]}
