"""Where a forced choice is read: what stands between the thinking and the answer, as token ids."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from steerheal.errors import UserError
from steerheal.measure.protocol import Protocol
from steerheal.models.chat import Told, text_ids, told_after
from steerheal.models.model import ChatModel
from steerheal.models.thinking import block_at_end, opened_by

SENTINEL = "steerheal-sentinel"


@dataclass(frozen=True)
class Slot:
    """What every rollout goes through after its prompt."""

    answers: Int[Tensor, " 7"]
    """First token of every label, in canonical order."""
    suppressed: Int[Tensor, " S"]
    """Tokens that would end the thinking."""
    think: int
    """Think tokens in the context."""
    suffix: list[int]
    """The interruption."""
    prefill: list[int]
    """The answer's opening."""
    close: str
    """What closes the thinking, without white space."""


def slot_of(chat: ChatModel, protocol: Protocol, think: int) -> Slot:
    """The protocol's slot in the model's tokens.

    Raises:
        UserError: labels that begin with the same token, or a template without assistant turns.
    """
    stops, close = list(chat.stop_ids()), closing(chat, protocol)
    ids = text_ids(chat, close)
    if len(ids) == 1:
        stops += ids
    found = told_after(chat, interruption(chat, protocol), protocol.prefill, protocol.words())
    place = len(found.shared) - found.slot
    return Slot(
        answers=torch.tensor(_answers(chat, protocol, found), device=chat.device),
        suppressed=torch.tensor(sorted(set(stops)), device=chat.device),
        think=think if protocol.keep_last_think_token else max(0, think - 1),
        suffix=found.shared[:place],
        prefill=found.shared[place:],
        close=close.strip(),
    )


def closing(chat: ChatModel, protocol: Protocol) -> str:
    """What ends the thinking: the protocol's marker, or the template's own where it opens one."""
    own = opened_by(protocol.think_open)
    block = block_at_end(chat.template.render([("user", "_")], reply=True))
    if own is None or block is None:
        return protocol.think_close
    return protocol.think_close.replace(own.close, block.markers.close)


def interruption(chat: ChatModel, protocol: Protocol) -> str:
    """What stands between the thinking and the forced answer.

    The marker that closes the thinking, the end of the turn, the nudge as a user turn, and the
    opening of the assistant's next turn, as the model's template prints them. A template that opens
    every conversation with the tokenizer's start token prints it here once more; it is left out.

    Raises:
        UserError: the template does not print what an assistant says.
    """
    turns = [("user", protocol.nudge), ("assistant", SENTINEL)]
    asked, said, close = chat.template.render(turns, reply=False).partition(SENTINEL)
    if not said:
        raise UserError(
            f"The chat template of {chat.name} does not print an assistant message; the "
            "forced-choice instrument needs one that does. Use --instrument likelihood."
        )
    return closing(chat, protocol) + close + asked.removeprefix(chat.template.start())


def _answers(chat: ChatModel, protocol: Protocol, found: Told) -> list[int]:
    """First token of every label, in canonical order; all seven differ, and none is the prefill's.

    A label whose first token is the prefill's own stands beside one that joins the prefill's end.
    """
    words, firsts = protocol.words(), [rest[0] for rest in found.rests]
    clashing = [
        word
        for word, first, lead in zip(words, firsts, found.leads, strict=True)
        if firsts.count(first) > 1 or lead > 1
    ]
    if clashing:
        raise UserError(
            f"The tokenizer of {chat.name} begins these labels with the same token: "
            f"{', '.join(clashing)}. Give a protocol file with other labels, or use "
            "--instrument likelihood."
        )
    return firsts
