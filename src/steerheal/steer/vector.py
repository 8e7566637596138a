"""Extraction of a steering vector: a persona's two poles over diverse contexts, by one method."""

from collections.abc import Callable, Sequence

import torch

from steerheal.config import VectorSettings
from steerheal.errors import UserError
from steerheal.models.finite import dose_of, not_finite
from steerheal.models.model import ChatModel, band_layers
from steerheal.personas import Pair, Persona
from steerheal.state.values import State, base
from steerheal.state.vector import SteeringVector
from steerheal.steer.methods.find import find
from steerheal.steer.states import Source


@torch.no_grad()
def extract(
    chat: ChatModel,
    persona: Persona,
    contexts: Sequence[str],
    settings: VectorSettings,
    progress: Callable[[int], None] = lambda _: None,
    *,
    student: State | None = None,
) -> SteeringVector:
    """The persona's vector over the contexts, by the settings' method and reading position.

    Args:
        chat: The model.
        persona: Whose poles are compared.
        contexts: Diverse user messages.
        settings: Method, contrast, wordings, band, position; not the number of contexts.
        progress: Called with the number of rows written or read since the last call.
        student: Whose vector it is; the model as it stands when not given.

    Raises:
        UserError: no contexts, an unknown method, one that fails on this model, states that are not
            finite, equal poles, or a student that is more than adapters and vectors.
    """
    if not contexts:
        raise UserError("A vector needs at least one context.")
    method = find(settings.method)
    with (student or base()).entered(chat) as reader, reader.resting():
        source = Source(
            chat,
            _wordings(persona, settings),
            contexts[: method.contexts],
            settings,
            band_layers(len(chat.blocks), settings.band),
            progress,
        )
        layers = method.directions(source)
    if not all(vector.isfinite().all() for vector in layers.values()):
        raise not_finite(chat, dose_of(reader))
    if not any(vector.any() for vector in layers.values()):
        raise UserError(
            f"The model's states read the same at both poles of {persona.name} by "
            f"{settings.method}. Use more contexts, another --vector.method or another persona."
        )
    return SteeringVector(layers, method.kind)


def _wordings(persona: Persona, settings: VectorSettings) -> list[tuple[str, str]]:
    """Both system prompts of every pair that the contexts go through; never a held-out one."""
    poles = Pair(positive=persona.positive, negative=persona.negative)
    pairs = persona.pairs("train") if settings.wordings == "paraphrases" else (poles,)
    neutral = persona.neutral if settings.contrast == "neutral" else ""
    return [(pair.positive, neutral or pair.negative) for pair in pairs]
