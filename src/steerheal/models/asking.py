"""What a row of a batch is asked: the conversation as every part of its state reads it."""

from collections.abc import Sequence
from typing import NamedTuple

from steerheal.models.chat import Told, common, prompt_ids, told
from steerheal.models.model import ChatModel
from steerheal.models.rows import Line
from steerheal.models.template import Message


def asked(
    chat: ChatModel, turns: str | Sequence[Message], *, state: int = 0, prefill: str = ""
) -> Line:
    """A conversation up to where the assistant writes on, under the state's system prompts.

    Args:
        chat: The model, or what a state's door gives.
        turns: One user message, or (role, text) turns that end with the user's.
        state: Which of the entered states is asked.
        prefill: What the assistant has said so far.
    """
    parts, begins = [], []
    for system in chat.systems(state):
        ids = prompt_ids(chat, turns, system=system, prefill=prefill)
        bare = prompt_ids(chat, turns, system=system) if prefill else ids
        parts.append(tuple(ids))
        begins.append(common(ids, bare))
    return Line(tuple(parts), tuple(begins), state)


class Offered(NamedTuple):
    """Alternative answers after one prompt and prefill, as a state reads them."""

    line: Line
    """What the prompt with the prefill begins with, and with every answer after it."""
    slot: int
    """How many of the last ids of the line are the prefill's."""
    rests: tuple[tuple[int, ...], ...]
    leads: tuple[int, ...]

    def forced(self) -> list[int]:
        """The prefill's ids."""
        row = self.line.parts[0]
        return list(row[len(row) - self.slot :])


def offered(
    chat: ChatModel,
    turns: str | Sequence[Message],
    prefill: str,
    answers: Sequence[str],
    *,
    state: int = 0,
) -> Offered:
    """As `told`, under the state's system prompts.

    Raises:
        UserError: as `told`.
    """
    found: list[Told] = [
        told(chat, turns, prefill, answers, system=system) for system in chat.systems(state)
    ]
    _, slot, rests, leads = found[0]
    # What stands before the prefill is the template's own, whatever the system prompt says.
    assert all(one[1:] == found[0][1:] for one in found), "parts that spell an answer differently"
    line = Line(
        tuple(tuple(one.shared) for one in found),
        tuple(len(one.shared) - slot for one in found),
        state,
    )
    return Offered(line, slot, rests, leads)
