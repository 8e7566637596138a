"""The chat template as one run renders it: its clock stopped, its variables set.

In: a tokenizer, a moment, variables. Out: a `Template`, which turns turns into text. What it sets
stands as Jinja statements before the template's own text, so that an outside instrument, which
renders that text by itself, gets the same prompts.
"""

import copy
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from steerheal.errors import UserError
from steerheal.models.thinking import block_at_end

Message = tuple[str, str]
"""A role (system, user or assistant) and what it says."""

SWITCHES = ("enable_thinking", "thinking")
"""Variables by which templates switch thinking; off unless asked for."""
DIRECTIVES = "aAwdbBmyYHIMSfzZjUWcxXpGuVeDFTRnt"
"""Letters after % that a clock's format may hold."""
DAYS = (datetime(2001, 2, 3), datetime(2019, 11, 28))
"""Two days that differ in every part: a template that prints any of them differs between."""
HOURS = (datetime(2001, 2, 3, 4, 5, 6), datetime(2001, 2, 3, 17, 48, 39))
"""Two times of one day, likewise."""
PROBES: tuple[tuple[Message, ...], ...] = (
    (("user", "a"),),
    (("system", "s"), ("user", "a")),
    (("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")),
    (("user", "a"), ("assistant", "b"), ("user", "c")),
)
"""Conversations whose rendering stands for the template's in a fingerprint."""


@dataclass(frozen=True)
class Template:
    """A tokenizer's chat template with the moment and the variables that one run gives it."""

    tokenizer: PreTrainedTokenizerBase
    text: str
    """Jinja source: what is set, then the template's own text."""
    variables: Mapping[str, Any]
    """What the template is given beside the conversation; a thinking switch stands here."""
    asked: frozenset[str]
    """Those of the variables that the user gave."""
    given: str
    """The date that the user gave; empty for none."""
    date: str
    """The moment as a setting, no finer than the template prints it; empty where it does not."""

    def render(self, turns: Sequence[Message], *, reply: bool) -> str:
        """The conversation as text; with `reply` up to where the assistant begins to write."""
        return cast(
            str,
            self.tokenizer.apply_chat_template(
                [{"role": role, "content": text} for role, text in turns],
                chat_template=self.text,
                tokenize=False,
                add_generation_prompt=reply,
            ),
        )

    def digest(self) -> str:
        """Digest of what it prints: two days differ only where the template shows the date."""
        shown = [_rendered(self.tokenizer, self.text, probe) for probe in PROBES]
        given = json.dumps([shown, dict(self.variables)], sort_keys=True)
        return hashlib.sha256(given.encode()).hexdigest()

    def thinking(self) -> str:
        """Whether answers begin with a thought, and by whose choice; empty where it has no say."""
        block = block_at_end(_rendered(self.tokenizer, self.text, PROBES[0]))
        switches = [name for name in SWITCHES if name in self.variables]
        opens = "" if block is None or block.closed else block.markers.open
        if not switches:
            closed = "off (the template closes an empty thought)" if block is not None else ""
            return f"always (the template opens {opens} and has no switch)" if opens else closed
        name = switches[0]
        mode = "on" if self.variables[name] else "off"
        why = ", as asked" if name in self.asked else ""
        left = f"; it opens {opens} all the same" if opens and mode == "off" else ""
        return f"{mode} (the template's {name}{why}{left})"

    def opens(self) -> bool:
        """Whether every answer begins inside a thought that the template has opened."""
        block = block_at_end(_rendered(self.tokenizer, self.text, PROBES[0]))
        return block is not None and not block.closed

    def start(self) -> str:
        """The tokenizer's BOS where the template prints it once, before everything; else empty.

        A BOS that opens every turn is a turn marker.
        """
        bos = self.tokenizer.bos_token
        text = self.render([("user", "a"), ("assistant", "b")] * 2, reply=False)
        once = isinstance(bos, str) and text.startswith(bos) and text.count(bos) == 1
        return bos if isinstance(bos, str) and once else ""

    def speaking(self) -> PreTrainedTokenizerBase:
        """A tokenizer whose own template is this one, for code that renders by itself."""
        made = copy.copy(self.tokenizer)
        made.chat_template = self.text
        return made


def frozen(
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    date: str = "",
    variables: Mapping[str, Any] | None = None,
) -> Template:
    """The tokenizer's template at one moment, thinking switched off where it can be.

    Args:
        tokenizer: Whose template it is.
        name: The model's, for messages.
        date: ISO date or time that the template's clock stands at; now when empty.
        variables: What the template is given beside the conversation.

    Raises:
        UserError: a variable that the template does not read.
    """
    own = tokenizer.get_chat_template()
    given = dict(variables or {})
    unread = [key for key in given if not _mentions(own, key)]
    if unread:
        raise UserError(
            f"The chat template of {name} does not read {', '.join(unread)}: "
            "--model.template-vars would have no effect. Leave it out or correct its name."
        )
    now = datetime.fromisoformat(date) if date else datetime.now().replace(microsecond=0)
    chosen = {**{switch: False for switch in SWITCHES if _switches(tokenizer, own, switch, now)},
              **given}  # fmt: skip
    timed, dated = (
        _differ(tokenizer, *(_set(own, clock, chosen) for clock in clocks))
        for clocks in (HOURS, DAYS)
    )
    day = now.date().isoformat() if dated else ""
    return Template(
        tokenizer=tokenizer,
        text=_set(own, now, chosen),
        variables=chosen,
        asked=frozenset(given),
        given=date,
        date=now.isoformat() if timed else day,
    )


def _mentions(source: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", source) is not None


def _switches(tokenizer: PreTrainedTokenizerBase, source: str, switch: str, now: datetime) -> bool:
    if not _mentions(source, switch):
        return False
    return _differ(tokenizer, *(_set(source, now, {switch: value}) for value in (False, True)))


def _differ(tokenizer: PreTrainedTokenizerBase, one: str, other: str) -> bool:
    """Whether two templates print any of the probes differently."""
    return any(
        _rendered(tokenizer, one, probe) != _rendered(tokenizer, other, probe) for probe in PROBES
    )


def _rendered(tokenizer: PreTrainedTokenizerBase, source: str, turns: Sequence[Message]) -> str:
    """The conversation up to the assistant's answer; what the template refuses is empty."""
    messages = [{"role": role, "content": text} for role, text in turns]
    try:
        found = tokenizer.apply_chat_template(
            messages, chat_template=source, tokenize=False, add_generation_prompt=True
        )
    except Exception:  # noqa: BLE001  templates refuse by raising whatever they like
        return ""
    return cast(str, found)


def _set(source: str, now: datetime, variables: Mapping[str, Any]) -> str:
    """The template's text after statements that set its variables and stop its clock."""
    values = {"date_string": now.strftime("%d %b %Y"), **variables}
    sets = "".join(f"{{% set {name} = {value!r} %}}" for name, value in values.items())
    # The renderer drops one line break after a statement: the source begins where it began.
    return f"{sets}{_clock(now)}\n{source}"


def _clock(now: datetime) -> str:
    """A macro strftime_now that knows every directive's value at one moment."""
    codes = [f"%{flag}{letter}" for flag in ("", "-") for letter in DIRECTIVES]
    known = [(code, value) for code in codes if (value := now.strftime(code)) != code]
    # A doubled % stands for itself, whatever letter follows.
    pairs = [("%%", "\0"), *known, ("\0", "%")]
    return (
        "{% macro strftime_now(format) %}{% set clock = namespace(text=format) %}"
        f"{{% for code, value in {pairs!r} %}}"
        "{% set clock.text = clock.text.replace(code, value) %}"
        "{% endfor %}{{ clock.text }}{% endmacro %}"
    )
