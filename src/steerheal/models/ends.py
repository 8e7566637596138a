"""Which tokens end an assistant's turn, as the template, the tokenizer and the model say."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from steerheal.errors import UserError

Render = Callable[[Sequence[tuple[str, str]]], str]
"""A conversation of (role, text) turns as the template prints it, complete, no answer begun."""
SAID, ASKED = "steerheal-sentinel", "steerheal-question"


class Ends(NamedTuple):
    """The ends of an assistant's turn."""

    marker: int
    """The id that the template prints after an assistant's message; training text ends with it."""
    stops: tuple[int, ...]
    """Every id that ends an answer, ascending."""
    note: str
    """What a reader should know of them; empty where all is usual."""


def ends_of_turn(
    net: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, render: Render, *, name: str
) -> Ends:
    """The marker of the template, and everything that stops an answer.

    The marker is the first token after the assistant's message that is flagged special, by name
    or only among the added tokens; failing that, an added token. Between two turns the marker may
    differ from the one at the end: both stop an answer. Where the template prints none, it is the
    end-of-sequence token.

    Raises:
        UserError: there is no such token.
    """
    said = getattr(net.generation_config, "eos_token_id", None)
    own: Any = tokenizer.eos_token_id
    model: list[Any] = [*said] if isinstance(said, list | tuple) else [said]
    eos: list[int] = [i for i in (own, *model) if i is not None]
    closing = _after(render, [("user", "_"), ("assistant", SAID)])
    between = _after(render, [("user", "_"), ("assistant", SAID), ("user", ASKED)])
    last = _marker(tokenizer, closing)
    marker = next((i for i in (last, *eos) if i is not None), None)
    if marker is None:
        raise UserError(
            f"{name}: no token ends an assistant turn. Give the tokenizer an eos_token."
        )
    middle = _marker(tokenizer, between.partition(ASKED)[0], first=True)
    stops = {i for i in (marker, middle, *eos) if i is not None}
    return Ends(marker, tuple(sorted(stops)), _note(tokenizer, closing, last, marker))


def _after(render: Render, turns: Sequence[tuple[str, str]]) -> str:
    """What the template prints after the assistant's message; empty where it refuses one."""
    try:
        return render(turns).rpartition(SAID)[2] if SAID in render(turns) else ""
    except Exception:  # noqa: BLE001  templates refuse by raising whatever they like
        return ""


def _marker(tokenizer: PreTrainedTokenizerBase, text: str, *, first: bool = False) -> int | None:
    """The first special token in a text, failing that its first added one; no white space.

    With `first` only white space may stand before it.
    """
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
    ids = tokenizer.encode(text, add_special_tokens=False)
    told = [i for i in ids if _words(tokenizer, i)]
    if first:
        told = told[:1]
    found = [i for i in told if i in special] or [i for i in told if i in added]
    return found[0] if found else None


def _words(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    return str(tokenizer.decode([token], skip_special_tokens=False)).strip()


def _note(tokenizer: PreTrainedTokenizerBase, closing: str, found: int | None, marker: int) -> str:
    """A marker of several tokens stops nothing by itself."""
    if found is not None or not closing.strip():
        return ""
    return (
        f"The chat template closes an assistant's message with {closing.strip()!r}, which is no "
        f"single special token: an answer ends only where the model writes "
        f"{_words(tokenizer, marker)!r}, or at its full length."
    )
