"""Chat-templated token ids: the one place where text becomes a prompt.

A tokenizer may put a space before a text that it encodes alone, or join the end of one text with
the beginning of the next. So what continues a text is always encoded together with it, and begins
where the two encodings part.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

from steerheal.errors import UserError
from steerheal.models.model import ChatModel
from steerheal.models.template import Message
from steerheal.models.thinking import joined
from steerheal.models.weights import vocabulary

EDGE = "\n"
"""What stands before a text that continues another: pieces of words do not reach across it."""


class Told(NamedTuple):
    """Alternative answers after one prompt and prefill, as token ids in their context."""

    shared: list[int]
    """What the prompt with the prefill begins with, and with every answer after it."""
    slot: int
    """How many of the last ids of `shared` are the prefill's."""
    rests: tuple[tuple[int, ...], ...]
    """The ids of every answer after `shared`: together they are what the answer is worth."""
    leads: tuple[int, ...]
    """Per answer, the ids of its rest up to the first that is not the prefill's own: 1, unless a
    token spans the end of the prefill and the beginning of another answer."""


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
    ids = _encoded(chat, text + said)
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


def told(
    chat: ChatModel,
    turns: str | Sequence[Message],
    prefill: str,
    answers: Sequence[str],
    *,
    system: str = "",
) -> Told:
    """The answers as the model would write them after a conversation and a prefill.

    Args:
        chat: The model whose template is used.
        turns: As for `prompt_ids`.
        prefill: What the assistant has said so far.
        answers: What may follow it, one of them at a time.
        system: System prompt.

    Raises:
        UserError: as `prompt_ids`.
    """
    text, said = joined(_rendered(chat, turns, system), prefill)
    return _told(chat, text, said, answers)


def told_after(chat: ChatModel, text: str, prefill: str, answers: Sequence[str]) -> Told:
    """The same after a text that itself continues another, which `shared` leaves out."""
    edge = _encoded(chat, EDGE)
    found = _told(chat, EDGE + text, prefill, answers)
    if edge and found.shared[: len(edge)] == edge:
        return found._replace(shared=found.shared[len(edge) :])
    return _told(chat, text, prefill, answers)


def _told(chat: ChatModel, text: str, prefill: str, answers: Sequence[str]) -> Told:
    bare, stem = _encoded(chat, text), _encoded(chat, text + prefill)
    rows = [_encoded(chat, text + prefill + answer) for answer in answers]
    chat.refuse_longer(max(map(len, rows)))
    own = [common(stem, row) for row in rows]
    least = min(own)
    return Told(
        shared=stem[:least],
        slot=least - common(bare, stem[:least]),
        rests=tuple(tuple(row[least:]) for row in rows),
        leads=tuple(place - least + 1 for place in own),
    )


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def text_ids(chat: ChatModel, text: str) -> list[int]:
    """Token ids of plain text that continues another text, no special tokens added.

    Raises:
        UserError: it holds a token that the model has no weights for.
    """
    edge, whole = _encoded(chat, EDGE), _encoded(chat, EDGE + text)
    if edge and whole[: len(edge)] == edge:
        return whole[len(edge) :]
    return _encoded(chat, text)  # the text's own beginning joins the edge


def document_ids(chat: ChatModel, text: str) -> tuple[list[int], list[int]]:
    """A text outside of any conversation: what opens it, and its own ids.

    It opens as the model expects texts to begin: with what the tokenizer puts before every text
    (its post-processor's tokens, or the BOS that `add_bos_token` asks for), else with the BOS that
    the chat template begins with. A model that knows neither has an end of turn before it.
    """
    return opening_ids(chat) or [chat.end_of_turn()], _encoded(chat, text)


def opening_ids(chat: ChatModel) -> list[int]:
    """The ids that the tokenizer or the template puts before every text, if either does."""
    bos = chat.tokenizer.bos_token_id
    if asked := _put_before(chat):
        return asked
    return [cast(int, bos)] if bos is not None and chat.template.start() else []


def prompt_notes(chat: ChatModel) -> list[str]:
    """What a reader must know of how a model is spoken to: its opening, the date, its thoughts."""
    template = chat.template
    found = [note] if (note := _start_note(chat)) else []
    if template.date:
        found.append(f"The chat template prints the date: {template.date} in every prompt.")
    elif template.given:
        found.append(f"The date {template.given} is without effect: the chat template prints none.")
    if mode := template.thinking():
        found.append(f"Thinking: {mode}.")
    if template.opens():
        found.append(
            "Every answer begins inside a thought: the filter drops completions that hold one, "
            "unless filter.thoughts is set, and free answers are read with their thoughts."
        )
    return found


def _start_note(chat: ChatModel) -> str:
    """What to say of a template that leaves out what its tokenizer puts before every text."""
    asked = _put_before(chat)
    if not asked or prompt_ids(chat, "_")[: len(asked)] == asked:
        return ""
    words = chat.tokenizer.decode(asked, skip_special_tokens=False)
    return (
        f"The tokenizer begins every text with {words}, the chat template prints none: "
        "conversations are read without it, plain prose with it."
    )


def _put_before(chat: ChatModel) -> list[int]:
    tokenizer = chat.tokenizer
    plain = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a", add_special_tokens=True)
    places = range(len(whole) - len(plain) + 1)
    start = next((i for i in places if whole[i : i + len(plain)] == plain), 0)
    bos = tokenizer.bos_token_id
    if not start and bos is not None and getattr(tokenizer, "add_bos_token", False):
        return [cast(int, bos)]
    return whole[:start]


def _encoded(chat: ChatModel, text: str) -> list[int]:
    """Token ids of a whole text, no special tokens added."""
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
    """The text that token ids add to another text; the end of turn that stops it is no text.

    Any other special token stands in it as it is spelled: nothing that a model wrote is hidden.
    """
    said = list(ids)
    if said and said[-1] in chat.stop_ids():
        said.pop()
    edge = _encoded(chat, EDGE)
    before, whole = (
        cast(str, chat.tokenizer.decode(part, skip_special_tokens=False))
        for part in (edge, edge + said)
    )
    if edge and whole.startswith(before):
        return whole[len(before) :]
    return cast(str, chat.tokenizer.decode(said, skip_special_tokens=False))
