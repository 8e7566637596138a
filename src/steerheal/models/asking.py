"""What a row of a batch is asked: the conversation as every part of its state reads it."""

from collections.abc import Sequence

from steerheal.models.chat import common, prompt_ids
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
