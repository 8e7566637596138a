"""Thought markers: how models write what they think before they answer, in one table.

Text in, text out. A thought is open from its first marker to its second; models spell both in
several ways, as special tokens or as plain text.
"""

import re
from typing import NamedTuple

from steerheal.records import Thought


class Markers(NamedTuple):
    """What opens a thought and what closes it."""

    open: str
    close: str
    heads_answers: bool = False
    """Whether the second one also heads an answer that has no thought before it."""


MARKERS = (
    Markers("<think>", "</think>"),
    Markers("<thinking>", "</thinking>"),
    Markers("<thought>", "</thought>"),
    Markers("<reasoning>", "</reasoning>"),
    Markers("<seed:think>", "</seed:think>"),
    Markers("[THINK]", "[/THINK]"),
    Markers("◁think▷", "◁/think▷"),
    Markers("<|START_THINKING|>", "<|END_THINKING|>"),
    Markers("<|begin_of_thought|>", "<|end_of_thought|>"),
    Markers("<|channel|>analysis<|message|>", "<|channel|>final<|message|>", heads_answers=True),
)


class Block(NamedTuple):
    """A thought that the text ends with: left open, or closed with nothing in it."""

    markers: Markers
    start: int
    """Where its first marker begins."""
    closed: bool


def block_at_end(text: str) -> Block | None:
    """The thought that a prompt's text ends with, white space apart."""
    for markers in MARKERS:
        opened, closed = re.escape(markers.open), re.escape(markers.close)
        found = re.search(rf"{opened}(\s*{closed})?\s*\Z", text)
        if found:
            return Block(markers, found.start(), closed=found[1] is not None)
    return None


def joined(text: str, said: str) -> tuple[str, str]:
    """A prompt's text and what the assistant has said so far, with one opening of a thought.

    A thought that `said` opens where the template has printed one is the template's own. Anything
    else that is said is an answer: a thought that the template left open is closed before it.
    """
    block = block_at_end(text)
    if block is None or not said:
        return text, said
    opening = opened_by(said)
    if opening is not None:
        rest = said.lstrip()[len(opening.open) :]
        head = text[: block.start] + block.markers.open
        blank = text[len(head) :]
        # White space after the marker is the template's own where it leaves the thought open.
        return (text, rest.lstrip()) if not block.closed and blank else (head, rest)
    if block.closed:
        return text, said
    edge = "\n" if text.endswith("\n") else ""
    return f"{text}{edge}{block.markers.close}{edge * 2}", said


def opened_by(text: str) -> Markers | None:
    """The markers of the thought that the text begins with."""
    start = text.lstrip()
    return next((markers for markers in MARKERS if start.startswith(markers.open)), None)


def thought_in(text: str, *, opened: bool = False) -> Thought:
    """Whether the text holds a thought, and whether an answer follows it.

    Args:
        text: What was written, markers that are special tokens included.
        opened: Whether the prompt left a thought open before it.
    """
    last = max(text.rfind(markers.open) for markers in MARKERS)
    ends = [
        text.rfind(markers.close) + len(markers.close)
        for markers in MARKERS
        if markers.close in text and (opened or last >= 0 or not markers.heads_answers)
    ]
    if not opened and last < 0 and not ends:
        return ""
    if not ends or last >= max(ends):
        return "open"
    return "closed" if text[max(ends) :].strip() else "open"
