"""Plain text as LaTeX and as Markdown in which nothing of it is markup.

Whatever a model, a persona or a command line holds is text: no command of TeX, no HTML, no link,
no citation, no maths and no shortcode of Quarto comes of it.
"""

import re

from steerheal.report.words import visible

SYMBOLS = {
    "−": "-",
    "·": r"\cdot",
    "×": r"\times",
    "±": r"\pm",
    "√": r"\surd",
    "∞": r"\infty",
    "‖": r"\|",
    "→": r"\rightarrow",
    "≤": r"\leq",
    "≥": r"\geq",
    "≈": r"\approx",
    "∇": r"\nabla",
    "ℓ": r"\ell",
    "₀": "_0",
    "★": r"\star",
    "Δ": r"\Delta",
    "Σ": r"\Sigma",
    "\N{GREEK SMALL LETTER ALPHA}": r"\alpha",
    "β": r"\beta",
    "ε": r"\varepsilon",
    "η": r"\eta",
    "λ": r"\lambda",
    "τ": r"\tau",
}
"""Characters that text fonts of TeX lack, in its maths."""
LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    # After the end of a table's row both would be arguments of it.
    "[": "{[}",
    "*": "{*}",
    **{sign: f"${command}$" for sign, command in SYMBOLS.items()},
}
ANYWHERE = re.compile(r"[\\`*_{}<>#$@|~^&!]|\](?=[(\[])|-(?=-)|:(?=:)")
"""What is markup in the middle of a line."""
AT_START = re.compile(r"^([-+:=\[]|\(?\w+[.)](?=\s|$))")
"""What makes a list, a definition or a heading of a block that begins with it."""


def flat(text: str) -> str:
    """The text on one line, with what cannot be seen made visible."""
    return visible(re.sub(r"\s+", " ", text))


def latex(text: str) -> str:
    """The text for LaTeX, any engine of it that reads UTF-8."""
    return "".join(LATEX.get(character, character) for character in flat(text))


def inline(text: str) -> str:
    """The text for the middle of a line, or a table's cell, of Pandoc's or GitHub's Markdown."""
    return ANYWHERE.sub(r"\\\g<0>", flat(text))


def markdown(text: str) -> str:
    """The text for a whole block of it."""
    found = inline(text.strip())
    return AT_START.sub(lambda match: f"{match[0][:-1]}\\{match[0][-1]}", found)


def preamble() -> str:
    """What a LaTeX document needs for the tables, and for these characters in its own text."""
    lines = [
        f"\\newunicodechar{{{sign}}}{{\\ensuremath{{{command}}}}}"
        for sign, command in SYMBOLS.items()
    ]
    return "\n".join([r"\usepackage{booktabs,adjustbox,newunicodechar}", *lines, ""])
