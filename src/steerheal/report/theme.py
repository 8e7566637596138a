"""The report's colours, light and dark, and a figure as SVG that follows the page's.

A colour is written once, here: the style sheet and the figures both take it from `PALETTE`.
"""

import re
from xml.etree import ElementTree

from markupsafe import Markup

PALETTE = {
    "paper": ("#fbfbf9", "#171816"),
    "card": ("#ffffff", "#20211f"),
    "ink": ("#1d1d1b", "#e9e8e3"),
    "soft": ("#62625d", "#a9a8a1"),
    "edge": ("#8f8f89", "#7d7d76"),
    "rule": ("#e0e0da", "#3a3b36"),
    "tint": ("#f2f2ee", "#292a27"),
    "steer": ("#bf4000", "#ff9161"),
    "heal": ("#00704f", "#45c79c"),
    "accent": ("#2a5d8f", "#8dbcea"),
}
"""Name, colour on a light page, colour on a dark one. Steered and healed stay apart for readers who
do not tell red from green: the dark red is an orange, the green a blue-green, their marks differ.
"""
LIGHT = {name: light for name, (light, _) in PALETTE.items()}
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
ElementTree.register_namespace("", SVG.strip("{}"))


def style_sheet(rules: str) -> Markup:
    """The page's colours as CSS variables, before its rules; paper is always light."""
    light = "".join(f"--{name}:{colour};" for name, (colour, _) in PALETTE.items())
    dark = "".join(f"--{name}:{colour};" for name, (_, colour) in PALETTE.items())
    return Markup(
        f":root{{color-scheme:light dark;{light}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{rules}"
    )


def inline(drawing: str, name: str, label: str) -> Markup:
    """A figure's SVG as an element of the page, in the page's colours.

    Ids get the figure's name before them, since those of two figures are alike; `label` is what is
    read out in its place.
    """
    root = ElementTree.fromstring(drawing)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{SVG}metadata" or child.tag == f"{SVG}style":
                parent.remove(child)
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            element.set(key.replace(XLINK, ""), _own(key, value, name))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", label)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _own(key: str, value: str, name: str) -> str:
    """An attribute with the figure's own ids and the page's colours."""
    match key:
        case "id":
            return f"{name}-{value}"
        case "style":
            return re.sub(r"#[0-9a-f]{6}", _variable, value)
        case _ if value.startswith("url(#"):
            return value.replace("url(#", f"url(#{name}-")
        case _ if key.endswith("href"):
            return value.replace("#", f"#{name}-", 1)
        case _:
            return value


VARIABLES = {colour: f"var(--{name})" for name, colour in LIGHT.items()}


def _variable(match: re.Match[str]) -> str:
    return VARIABLES.get(match[0], match[0])
