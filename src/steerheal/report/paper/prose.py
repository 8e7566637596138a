"""Sentences with citations, as Markdown and as LaTeX, and the sources that they cite.

A use is what was used, such as "method pca"; which sources that has stands in
`report/sources.toml`. What has none is not cited.
"""

import tomllib
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from steerheal.report.paper.escape import inline, latex


class Cite(NamedTuple):
    """What the words before it have their sources for."""

    uses: tuple[str, ...]

    def sources(self) -> "list[Source]":
        """They, each once."""
        return [source for source in sources() if source.of & set(self.uses)]


Prose = Sequence[str | Cite]
"""A paragraph: plain text, of which nothing is markup, and citations."""


class Source(NamedTuple):
    """An entry of the bibliography and the uses that it stands for."""

    key: str
    of: frozenset[str]
    bibtex: str


@cache
def sources() -> tuple[Source, ...]:
    """All that can be cited, in the file's order."""
    text = files("steerheal.report").joinpath("sources.toml").read_text(encoding="utf-8")
    return tuple(
        Source(item["key"], frozenset(item["of"]), item["bibtex"].strip())
        for item in tomllib.loads(text)["source"]
    )


def cite(*uses: str) -> Cite:
    """The sources of what was used."""
    return Cite(uses)


def cited_of(kind: str) -> list[str]:
    """The names of a kind of use that have a source, in the file's order."""
    named = [use.partition(" ") for source in sources() for use in sorted(source.of)]
    return [name for of, _, name in named if of == kind]


def as_markdown(prose: Prose) -> str:
    """The paragraph in Pandoc's Markdown."""
    return "".join(
        inline(part) if isinstance(part, str) else _cited(part, " [@{}]", "; @") for part in prose
    )


def as_latex(prose: Prose) -> str:
    """The paragraph in LaTeX, with natbib's citations."""
    return "".join(
        latex(part) if isinstance(part, str) else _cited(part, r" \citep{{{}}}", ",")
        for part in prose
    )


def _cited(part: Cite, form: str, between: str) -> str:
    keys = [source.key for source in part.sources()]
    return form.format(between.join(keys)) if keys else ""


def bibliography(paragraphs: Iterable[Prose]) -> str:
    """BibTeX of what the paragraphs cite, and of nothing else."""
    cited = {
        source.key
        for prose in paragraphs
        for part in prose
        if isinstance(part, Cite)
        for source in part.sources()
    }
    return "\n\n".join([*(item.bibtex for item in sources() if item.key in cited), ""])
