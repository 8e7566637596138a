"""A state without hooks: its vectors as biases on blocks' outputs, its history as one adapter."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerheal.errors import UserError
from steerheal.models.unhooked import Unhooked
from steerheal.state.fold import concatenated
from steerheal.state.part import Part
from steerheal.tables import OWN_ENGINE

PLAIN = ("plain",)
"""The formula of a state that one forward gives."""


def unhooked(parts: Sequence[Part], formula: tuple[object, ...], name: str) -> Unhooked:
    """What a state is where nothing can act on a forward.

    Args:
        parts: What it is made of.
        formula: How.
        name: What people call it.

    Raises:
        UserError: several forwards make it, it acts from a token on, or its vector is not added.
    """
    if why := _why_not(parts, formula):
        raise UserError(
            f"{name} cannot be written by an engine without hooks: {why}. Use --engine "
            f"{OWN_ENGINE}."
        )
    (part,) = parts
    live = [item for item in part.history if item.gate != 0]
    biases: dict[int, Float[Tensor, " D"]] = {}
    for vector, dose in part.vectors:
        for block, direction in vector.layers.items() if dose else ():
            push = dose * direction.float().cpu()
            biases[block] = biases.get(block, torch.zeros_like(push)) + push
    # The type checker takes a cached property for no property.
    adapter: Any = concatenated(live) if live else None
    return Unhooked(biases, adapter)


def _why_not(parts: Sequence[Part], formula: tuple[object, ...]) -> str:
    if formula != PLAIN:
        return "its logits are made of several forwards in the same batch"
    (part,) = parts
    pushing = [vector for vector, dose in part.vectors if dose]
    if pushing and part.acts_from is not None:
        return "its vector acts only from a token of the answer on"
    kinds = sorted({vector.kind for vector in pushing} - {"add"})
    if kinds:
        return (
            f"what its vector of kind {kinds[0]} does depends on the hidden state, and is no bias"
        )
    return ""
