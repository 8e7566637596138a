"""A command's help, written from its options: a screen for what matters, all of it when asked."""

import json
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from steerheal.bounds import allowed
from steerheal.errors import UserError, unknown
from steerheal.line import MANY, Option, first, options, placeholder, table_of

SHORT, ALL = ("-h", "--help"), "--help-all"
COLUMN, WIDEST = 26, 100
"""Where the sentences begin, and the widest line."""


def asked(argv: Sequence[str]) -> int | None:
    """Where on a line help is asked for; None where it is not."""
    return next((i for i, word in enumerate(argv) if word in (*SHORT, ALL)), None)


def page(name: str, kind: type[BaseModel], argv: Sequence[str], defaults: BaseModel | None) -> str:
    """The help that a line asks for.

    Args:
        name: The command.
        kind: Its options.
        argv: Its line, with a word for help in it; names of groups may follow.
        defaults: The values that hold without an option; None: the options' own.

    Raises:
        UserError: no group of that name.
    """
    place = asked(argv)
    assert place is not None, "help was not asked for"
    known, groups = sorted(options(kind), key=lambda o: not o.positional), _groups(kind)
    wanted = argv[place + 1 :]
    for word in wanted:
        if word not in groups:
            raise (
                unknown("group of options", word, groups)
                if groups
                else UserError(f"Nothing follows --help of {name}.")
            )
    chosen = {group: [o for o in known if _group(o) == group] for group in wanted or ["", *groups]}
    if wanted:
        return "\n\n".join(_section(g, groups[g], chosen[g], defaults) for g in wanted)
    own = " ".join(f"[{o.flags[0].upper()}]" for o in known if o.positional)
    head = f"usage: steerheal {name} {own} [OPTIONS]".replace("  ", " ") + f"\n\n{kind.__doc__}"
    if not groups or argv[place] == ALL:
        rest = [_section(g, groups.get(g, ""), rows, defaults) for g, rows in chosen.items()]
        return "\n\n".join([head, *rest])
    brief = [o for o in known if not _group(o) or len(o.flags) > 1]
    lines = [_entry(g, f"{text} ({len(chosen[g])} options)") for g, text in groups.items()]
    ways = f"steerheal {name} --help GROUP shows a group, --help-all everything. Groups:"
    return "\n\n".join(
        [head, "\n".join(_brief(o, defaults) for o in brief), ways, "\n".join(lines)]
    )


def _groups(kind: type[BaseModel]) -> dict[str, str]:
    """Every group of options and what it is about."""
    found: dict[str, str] = {}
    for option in options(kind):
        if group := _group(option):
            model: Any = kind
            for name in option.path[:-1]:
                model = model.model_fields[name].annotation
            found[group] = (model.__doc__ or "").splitlines()[0]
    return found


def _group(option: Option) -> str:
    """The stage that a setting belongs to; empty for a command's own."""
    return option.flags[-1].lstrip("-").rpartition(".")[0]


def _section(group: str, text: str, rows: Sequence[Option], defaults: BaseModel | None) -> str:
    title = [f"{group}: {text}"] if group else []
    return "\n".join([*title, *(_whole(option, defaults) for option in rows)])


def _brief(option: Option, defaults: BaseModel | None) -> str:
    return _entry(_name(option, first=True), f"{first(option.field)}{_default(option, defaults)}")


def _whole(option: Option, defaults: BaseModel | None) -> str:
    text = " ".join((option.field.description or "").split())
    if table := table_of(option.field.metadata):
        text += f" {table.sentences()}."
    kind = option.field.annotation
    bounds = allowed(kind, tuple(option.field.metadata))
    ranged = any(word in bounds for word in (" from ", " above ", " to "))
    limits = f" Allowed: {bounds}." if ranged else ""
    return _entry(_name(option), f"{text}{limits}{_default(option, defaults)}")


def _entry(name: str, text: str) -> str:
    width = min(WIDEST, max(60, shutil.get_terminal_size((80, 24)).columns))
    body = textwrap.wrap(text, width - COLUMN, break_on_hyphens=False) or [""]
    if len(name) > COLUMN - 4:
        return "\n".join([f"  {name}", *(" " * COLUMN + line for line in body)])
    head = f"  {name}".ljust(COLUMN) + body[0]
    return "\n".join([head, *(" " * COLUMN + line for line in body[1:])])


def _name(option: Option, *, first: bool = False) -> str:
    if option.positional:
        return option.flags[0].upper() + (" …" if option.most == MANY else "")
    flags = option.flags[:1] if first else option.flags
    if option.off:
        return ", ".join([*flags, *([] if first else [option.off])])
    return f"{', '.join(flags)} {placeholder(option.field.annotation, option.field.metadata)}"


def _default(option: Option, defaults: BaseModel | None) -> str:
    value: Any = option.field.default
    if defaults is not None:
        value = defaults
        for name in option.path:
            value = getattr(value, name)
    if option.field.is_required() or value in (None, "", (), {}):
        return ""
    if isinstance(value, bool):
        return f" (default: {'yes' if value else 'no'})"
    if isinstance(value, tuple):
        value = " ".join(map(str, value))
    if isinstance(value, dict):
        value = " ".join(f"{name}={json.dumps(one)}" for name, one in value.items())
    return f" (default: {value if isinstance(value, str | Path) else f'{value:g}'})"
