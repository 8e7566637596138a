"""What a teacher makes of the completions that are trained on, for `distill`.

The teacher is a state: a vector, a prompt, an adapter or a formula may make it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from steerheal.models.asking import asked
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states
from steerheal.records import Completion
from steerheal.state.values import State, entered


class Taught(NamedTuple):
    """What a teacher's logits are made of, per completion, and whose head makes them."""

    states: list[Float[Tensor, "_ W"]]
    reader: ChatModel


def taught(chat: ChatModel, teacher: State, kept: Sequence[Completion]) -> Taught:
    """The teacher's states on the completions, each at the dose that it was drawn at.

    A per-token trace of doses is read as the completion's nominal dose.

    Args:
        chat: The model, in no state.
        teacher: What the completions were drawn from, at any dose.
        kept: The completions.
    """
    doses = sorted({item.dose for item in kept}) if teacher.dose else [0.0]
    states = [teacher.at_dose(dose) for dose in doses] if teacher.dose else [teacher]
    with entered(chat, states) as reader:
        places = [doses.index(item.dose) if teacher.dose else 0 for item in kept]
        pairs = [
            (asked(reader, item.prompt, state=place), item.tokens)
            for item, place in zip(kept, places, strict=True)
        ]
        return Taught(continuation_states(reader, pairs), reader)
