"""Logits that no token can be chosen from, and what is said of them.

A push that is too strong for the model's precision overflows; damaged weights do so without one.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steerheal.errors import UserError
from steerheal.models.hooks import standing_dose
from steerheal.models.model import ChatModel


def overflowed(logits: Float[Tensor, "B V"]) -> Bool[Tensor, " B"]:
    """Rows that hold NaN or +inf, or nothing but −inf; a masked token is no fault."""
    return ~logits.amax(-1).isfinite()


def not_finite(chat: ChatModel, dose: float) -> UserError:
    """The message about a model whose logits are not finite at a dose; 0 is none."""
    precision = str(chat.net.dtype).removeprefix("torch.")
    wider = "" if chat.net.dtype == torch.float32 else ", or use --model.dtype float32"
    if dose:
        return UserError(
            f"The logits of {chat.name} are not finite at dose {dose:g} in {precision}: the push "
            f"is too strong for it. Lower the dose{wider}."
        )
    return UserError(
        f"The logits of {chat.name} are not finite in {precision} without any dose: its weights "
        f"are damaged or too large. Use another copy of the model{wider}."
    )


def dose_of(chat: ChatModel, state: int = 0) -> float:
    """The dose that an entered state is at, or that hooks put by hand stand at; 0 without any."""
    return chat.dose(state) or standing_dose(chat)


def refuse_at_rest(chat: ChatModel, state: int = 0) -> None:
    """For a reading that is not finite: an error unless a dose explains it.

    Raises:
        UserError: nothing steers the state.
    """
    if not dose_of(chat, state):
        raise not_finite(chat, 0.0)
