"""Verifiable tasks: short instructions whose answers code can check. No torch.

A checker takes what a person would: case, markup and a final period do not count, nor does prose
around the answer, unless the instruction says "only" or "exactly".
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import pairwise
from typing import Any, Literal

from steerheal.personas import alike
from steerheal.prompts import lines
from steerheal.records import Record

Check = Literal[
    "exactly", "json", "letter", "literal", "members", "number", "only", "order", "pick", "says",
    "words", "yes_no",
]  # fmt: skip


class Task(Record):
    """One instruction and what its answer must be."""

    id: str
    kind: str
    """What it asks for; the bundled tasks hold eight of every kind."""
    prompt: str
    check: Check
    arguments: dict[str, Any]
    """What the check compares with; each checker says which it takes."""


@cache
def load() -> tuple[Task, ...]:
    """The bundled tasks, one of every kind in turn: any beginning of them is as mixed."""
    return tuple(map(Task.model_validate_json, lines("tasks", "jsonl")))


def passed(task: Task, answer: str) -> bool:
    """Whether the answer is what the task asks for."""
    return CHECKS[task.check](task, answer)


def _number(task: Task, answer: str) -> bool:
    """`value`, the first or the last number that the prompt does not give."""
    given = [*_figures(task.prompt), *_numerals(task.prompt)]
    found = [n for n in _figures(answer) or _numerals(answer) if n not in given]
    return bool(found) and task.arguments["value"] in (found[0], found[-1])


def _says(task: Task, answer: str) -> bool:
    """One of `any`."""
    return bool(_named(task.arguments["any"], answer))


def _only(task: Task, answer: str) -> bool:
    """`text` and nothing else."""
    bare = re.sub(r"[.!]$", "", _bare(answer))
    return alike(_bare(bare)) == alike(task.arguments["text"])


def _exactly(task: Task, answer: str) -> bool:
    """`text` to the letter and nothing else."""
    return _bare(answer) == task.arguments["text"]


def _literal(task: Task, answer: str) -> bool:
    """`text` somewhere, in its case."""
    return _holds(answer, task.arguments["text"])


def _order(task: Task, answer: str) -> bool:
    """`items`, each once and in this order; the list as it was given may stand before."""
    items = [alike(item) for item in task.arguments["items"]]
    plain = alike(re.sub(r"(?m)^\s*\d+[.)]\s+", "", answer))
    either = "|".join(map(re.escape, sorted(items, key=len, reverse=True)))
    said = re.findall(rf"(?<!\w)(?:{either})(?!\w)", plain)
    return said[-len(items) :] == items and len(said) in (len(items), 2 * len(items))


def _pick(task: Task, answer: str) -> bool:
    """`item` and none of the `others`."""
    asked = task.arguments
    return bool(_named([asked["item"]], answer)) and not _named(asked["others"], answer)


def _letter(task: Task, answer: str) -> bool:
    """`value`, the one letter that stands by itself; "a" and "I" are words."""
    # Letters that hyphens join are a word that is spelled out.
    alone = {word for word in re.findall(r"\w+(?:-\w+)*", alike(answer)) if re.match(r"\D$", word)}
    return alone - {"a", "i"} == {task.arguments["value"]}


def _yes_no(task: Task, answer: str) -> bool:
    """Yes where `value` is true, else no: as the first word, or as the only one of the two."""
    # The question's own "yes or no" answers nothing.
    words = re.findall(r"\w+", alike(answer).replace("yes or no", ""))
    said = [word for word in words if word in ("yes", "no")]
    clear = said[:1] == words[:1] or len(set(said)) == 1
    return clear and said[:1] == ["yes" if task.arguments["value"] else "no"]


def _json(task: Task, answer: str) -> bool:
    """A JSON object with exactly these `fields`; texts in any case."""
    return any(_same(found, task.arguments["fields"]) for found in _objects(answer))


def _words(task: Task, answer: str) -> bool:
    """Exactly `count` words, none said twice in a row."""
    words = re.findall(r"[^\W_]+(?:['\u2019-][^\W_]+)*", alike(answer))
    twice = any(one == other for one, other in pairwise(words))
    return len(words) == task.arguments["count"] and not twice


def _members(task: Task, answer: str) -> bool:
    """Exactly `count` different ones `of` these and none `besides`."""
    asked = task.arguments
    besides = _named(asked.get("besides", ()), answer)
    return len(_named(asked["of"], answer)) == asked["count"] and not besides


CHECKS: dict[Check, Callable[[Task, str], bool]] = {
    "exactly": _exactly,
    "json": _json,
    "letter": _letter,
    "literal": _literal,
    "members": _members,
    "number": _number,
    "only": _only,
    "order": _order,
    "pick": _pick,
    "says": _says,
    "words": _words,
    "yes_no": _yes_no,
}


def _bare(answer: str) -> str:
    """The answer without the quotes, emphasis and white space around it."""
    return " ".join(answer.split()).strip(" \"'`*\u201c\u201d\u2018\u2019")


def _holds(answer: str, text: str) -> bool:
    """Whether the text stands in the answer as whole words."""
    return re.search(rf"(?<!\w){re.escape(text)}(?!\w)", answer) is not None


def _named(texts: Iterable[str], answer: str) -> list[str]:
    """Those of the texts that the answer says."""
    return [text for text in texts if _holds(alike(answer), alike(text))]


def _figures(text: str) -> list[float]:
    """Numbers in digits: 1,000 is one thousand, and a hyphen between two is no sign."""
    plain = text.replace("−", "-")
    found = re.findall(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\d+", plain)
    return [float(figure.replace(",", "")) for figure in found]


ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
NUMERALS = (
    {word: n for n, word in enumerate(ONES)}
    | {
        f"{ten}{f'-{ONES[one]}' if one else ''}": 10 * n + one
        for n, ten in enumerate(TENS, start=2)
        for one in range(10)
    }
    | {"twice": 2}
)
"""The numbers in words below a hundred."""


def _numerals(text: str) -> list[float]:
    """Numbers in words."""
    words = re.findall(r"[a-z]+(?:-[a-z]+)?", alike(text))
    return [float(NUMERALS[word]) for word in words if word in NUMERALS]


def _objects(answer: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text, each where its brace opens."""
    decoder = json.JSONDecoder()
    for place in (m.start() for m in re.finditer(r"\{", answer)):
        try:
            found, _ = decoder.raw_decode(answer, place)
        except (ValueError, RecursionError):
            continue
        yield found


def _same(one: object, other: object) -> bool:
    """Equal in kind and value; texts in any case."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, str) and isinstance(other, str):
        return alike(one) == alike(other)
    return type(one) is type(other) and one == other
