"""steer-heal-love: an activation-steering vector, turned into LoRA weights and healed on the way.

The public names load on first use, so that importing the package does not import torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steerheal.config import (
        DoseSettings,
        FilterSettings,
        HealSettings,
        MeasureSettings,
        ModelSettings,
        PushSettings,
        RunConfig,
        SamplingSettings,
        VectorSettings,
    )
    from steerheal.errors import UserError
    from steerheal.filter.rules import calibrated, judge
    from steerheal.filter.scores import scored_by
    from steerheal.heal.teacher import taught
    from steerheal.heal.train import heal_student, training_pairs
    from steerheal.measure.evaluate import evaluate
    from steerheal.measure.summary import summarise
    from steerheal.models.generate import Draw, generate, write
    from steerheal.models.load import load
    from steerheal.models.model import ChatModel
    from steerheal.models.score import continuation_states, token_logprobs
    from steerheal.personas import Persona, find
    from steerheal.pipeline.walk import harvest
    from steerheal.prompts import contexts
    from steerheal.state.adapter import Adapter
    from steerheal.state.fold import Gated, folded
    from steerheal.state.formulas import contrast, plausible
    from steerheal.state.values import State, base, entered
    from steerheal.state.vector import SteeringVector
    from steerheal.steer.vector import extract

_HOMES = {
    "steerheal.config": (
        "DoseSettings",
        "FilterSettings",
        "HealSettings",
        "MeasureSettings",
        "ModelSettings",
        "PushSettings",
        "RunConfig",
        "SamplingSettings",
        "VectorSettings",
    ),
    "steerheal.errors": ("UserError",),
    "steerheal.state.adapter": ("Adapter",),
    "steerheal.state.fold": ("Gated", "folded"),
    "steerheal.state.formulas": ("contrast", "plausible"),
    "steerheal.state.values": ("State", "base", "entered"),
    "steerheal.heal.teacher": ("taught",),
    "steerheal.heal.train": ("heal_student", "training_pairs"),
    "steerheal.measure.evaluate": ("evaluate",),
    "steerheal.measure.summary": ("summarise",),
    "steerheal.models.generate": ("Draw", "generate", "write"),
    "steerheal.models.load": ("load",),
    "steerheal.models.model": ("ChatModel",),
    "steerheal.models.score": ("continuation_states", "token_logprobs"),
    "steerheal.prompts": ("contexts",),
    "steerheal.pipeline.walk": ("harvest",),
    "steerheal.filter.rules": ("calibrated", "judge"),
    "steerheal.personas": ("Persona", "find"),
    "steerheal.filter.scores": ("scored_by",),
    "steerheal.state.vector": ("SteeringVector",),
    "steerheal.steer.vector": ("extract",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Adapter",
    "ChatModel",
    "DoseSettings",
    "Draw",
    "FilterSettings",
    "Gated",
    "HealSettings",
    "MeasureSettings",
    "ModelSettings",
    "Persona",
    "PushSettings",
    "RunConfig",
    "SamplingSettings",
    "State",
    "SteeringVector",
    "UserError",
    "VectorSettings",
    "base",
    "calibrated",
    "contexts",
    "continuation_states",
    "contrast",
    "entered",
    "evaluate",
    "extract",
    "find",
    "folded",
    "generate",
    "harvest",
    "heal_student",
    "judge",
    "load",
    "plausible",
    "scored_by",
    "summarise",
    "taught",
    "token_logprobs",
    "training_pairs",
    "write",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"steerheal has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)
