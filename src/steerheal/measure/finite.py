"""Rows that could not be read: an error without a dose, NaN under one.

A dose that is too strong for the model's precision is a finding, and what it reads is NaN. A model
whose logits are not finite by itself is damaged, and nothing that it reads means anything.
"""

import math
from collections.abc import Sequence

from steerheal.models.finite import dose_of, not_finite, refuse_at_rest
from steerheal.models.model import ChatModel
from steerheal.records import CanaryRow, VignetteRow


def unread(row: VignetteRow | CanaryRow) -> bool:
    """Whether a row's logits were not finite; a label that the head masks is no fault."""
    p = row.p if isinstance(row, VignetteRow) else ()
    return not all(map(math.isfinite, (*p, row.p_ans_any, row.nll_prefill)))


def refuse_broken(
    chat: ChatModel, swept: Sequence[Sequence[VignetteRow] | Sequence[CanaryRow]]
) -> None:
    """Checks the rows of every entered state.

    Raises:
        UserError: rows could not be read without a dose.
    """
    for state, rows in enumerate(swept):
        if any(map(unread, rows)):
            refuse_at_rest(chat, state)


def refuse_unread(chat: ChatModel, rows: Sequence[VignetteRow] | Sequence[CanaryRow]) -> None:
    """Checks the rows of one state, whatever steers it.

    Raises:
        UserError: rows could not be read.
    """
    if any(map(unread, rows)):
        raise not_finite(chat, dose_of(chat))
