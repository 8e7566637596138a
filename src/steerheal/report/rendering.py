"""Records as one self-contained page: every value is escaped, and control characters are shown."""

from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from steerheal.report.theme import style_sheet
from steerheal.report.words import visible


def rendered(template: str, **values: object) -> str:
    """A template of this package, filled."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
        loader=FunctionLoader(_part),
    )
    style = style_sheet(_part("style.css"))
    return environment.get_template(template).render(style=style, **values)


def _part(name: str) -> str:
    return files("steerheal.report").joinpath(name).read_text(encoding="utf-8")


def _shown(value: object) -> object:
    """Runs on every value of the template, before it is escaped."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
