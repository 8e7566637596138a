"""Whether what an arm does lasts: its state under other conditions, as a stage."""

from collections.abc import Mapping, Sequence

import numpy as np

from steerheal import streams
from steerheal.config.comparing import BASE, CompareSettings
from steerheal.measure import curves
from steerheal.measure.persistence import Persistence, conditions, persistence
from steerheal.pipeline.arms.kind import FIRST
from steerheal.pipeline.declared import STATES
from steerheal.pipeline.stage import Stage, record
from steerheal.pipeline.stages import Stages
from steerheal.records.comparing import Persisted
from steerheal.state.values import State
from steerheal.streams import stream

PERSIST = Stage(
    "persist", persistence, record("persistence.json", Persistence),
    by=("measure.persistence", *STATES),
    counts={"persona": lambda persona: (persona.negative, persona.pairs("held_out"))},
)  # fmt: skip


def asked_to_last(settings: CompareSettings) -> tuple[str, ...]:
    """The arms that are asked whether they last: the base and both of the primary comparison."""
    return (BASE, settings.against, settings.ours)


def lasting(own: Stages, state: State) -> Persistence:
    """A state under every condition; `own` are the run's stages in the arm's folder."""
    config, persona = own.config, own.persona
    asked = persona.prompts.evaluate[: config.measure.prompts]
    sampling = config.sampling.model_copy(update={"tokens": config.measure.tokens})
    total = len(asked) * len(conditions(persona))
    made = PERSIST.of(
        own.chat, state, persona, asked, sampling,
        pairs=config.measure.held_out_pairs, seed=stream(config.seed, streams.LASTING),
    )  # fmt: skip
    return own.barred(made, FIRST, "whether it lasts", total)


def persisted(
    found: Mapping[tuple[int, str], Persistence], settings: CompareSettings
) -> list[Persisted]:
    """What is left of the trait, less the base's under the same condition, over seeds and prompts.

    Args:
        found: By seed and name of the arm.
        settings: Which arms.
    """
    seeds = sorted({seed for seed, _ in found})
    arms = [
        name for name in asked_to_last(settings) if all((seed, name) in found for seed in seeds)
    ]
    if not seeds or BASE not in arms:
        return []
    return [
        Persisted(
            arm=name,
            condition=condition,
            trait=curves.over(
                [
                    _values(found[seed, name], condition) - _values(found[seed, BASE], condition)
                    for seed in seeds
                ],
                curves.average,
            ),
        )
        for name in arms
        if name != BASE
        for condition in found[seeds[0], BASE].rows
    ]


def _values(read: Persistence, condition: str) -> curves.Floats:
    rows: Sequence[float] = [row.value for row in read.rows[condition]]
    return np.array(rows, dtype=np.float64)
