"""Chat-templated token ids: the one place where text becomes a prompt."""

from collections.abc import Sequence
from typing import cast

from steerheal.errors import UserError
from steerheal.models.model import ChatModel
from steerheal.models.template import Message
from steerheal.models.thinking import joined
from steerheal.models.weights import vocabulary


def prompt_ids(
    chat: ChatModel, turns: str | Sequence[Message], *, system: str = "", prefill: str = ""
) -> list[int]:
    """Token ids of a conversation up to where the assistant writes on.

    The template's text is tokenised without adding special tokens again, and never truncated. A
    thought is opened once, whoever opens it, and closed before a prefill that is an answer.

    Args:
        chat: The model whose template is used.
        turns: One user message, or (role, text) turns that end with the user's.
        system: System prompt; it opens the first user turn when the template has no such role.
        prefill: What the assistant has said so far.

    Raises:
        UserError: it is longer than the model's positions, or holds a token without weights.
    """
    text, said = joined(_rendered(chat, turns, system), prefill)
    ids = text_ids(chat, text + said)
    chat.refuse_longer(len(ids))
    return ids


def _rendered(chat: ChatModel, turns: str | Sequence[Message], system: str) -> str:
    said = [("user", turns)] if isinstance(turns, str) else list(turns)
    if system and not chat.system_role:
        role, text = said[0]
        said[0] = (role, f"{system}\n\n{text}")
    if system and chat.system_role:
        said.insert(0, ("system", system))
    return chat.template.render(said, reply=True)


def text_ids(chat: ChatModel, text: str) -> list[int]:
    """Token ids of plain text, no special tokens added.

    Raises:
        UserError: it holds a token that the model has no weights for.
    """
    ids = chat.tokenizer.encode(text, add_special_tokens=False)
    rows = vocabulary(chat.net)
    beyond = [i for i in ids if i >= rows]
    if beyond:
        raise UserError(
            f"A text holds {chat.tokenizer.decode(beyond[:1])!r}, a token that {chat.name} has no "
            "weights for. Leave it out."
        )
    return ids


def decode(chat: ChatModel, ids: Sequence[int]) -> str:
    """The text of token ids, special tokens and ends of turn left out."""
    ends = chat.stop_ids()
    said = [i for i in ids if i not in ends]
    return cast(str, chat.tokenizer.decode(said, skip_special_tokens=True))
