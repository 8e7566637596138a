"""Numbers as a reader sees them: three digits, intervals in brackets, a sign for what is unknown.

Console, report and checks write numbers through this module alone.
"""

import math
import string
from typing import Any

from steerheal.records import Reading

MINUS, UNKNOWN = "\N{MINUS SIGN}", "\N{EN DASH}"


def number(value: float, *, signed: bool = False) -> str:
    """Three significant digits; a dash for NaN."""
    if math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    size = float(f"{abs(value):.3g}")
    text = f"{size:,.0f}" if 1000 <= size < 1e6 else f"{size:.3g}".replace("-", MINUS)
    if size == 0:
        return "0"
    return (MINUS if value < 0 else "+" if signed else "") + text


def interval(reading: Reading) -> str:
    """The 95 % interval in brackets; empty when there is none."""
    if math.isnan(reading.low) or math.isnan(reading.high):
        return ""
    return f"[{number(reading.low)}, {number(reading.high)}]"


def shown(reading: Reading | float | None, digits: int = 3, *, signed: bool = False) -> str:
    """A number at a fixed number of decimals, with its interval when it has one."""
    if reading is None:
        return UNKNOWN
    if isinstance(reading, float | int):
        return UNKNOWN if math.isnan(reading) else _fixed(reading, digits, "+" if signed else "")
    value = shown(reading.value, digits, signed=signed)
    if math.isnan(reading.value) or math.isnan(reading.low):
        return value
    return f"{value} [{_fixed(reading.low, digits)}, {_fixed(reading.high, digits)}]"


def _fixed(value: float, digits: int, sign: str = "") -> str:
    return f"{value:{sign}.{digits}f}".replace("-", MINUS)


class _Writer(string.Formatter):
    """Numbers with three digits, readings with their interval, "unknown" for NaN."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, Reading):
            return f"{self._number(value.value, format_spec)} {interval(value)}".rstrip()
        if isinstance(value, int | float):
            return self._number(value, format_spec)
        return str(value)

    @staticmethod
    def _number(value: float, spec: str) -> str:
        if math.isnan(value):
            return "unknown"
        return f"{100 * value:.0f} %" if spec == "%" else number(value, signed=spec == "+")


def written(template: str, e: object) -> str:
    """The template with the numbers of `e`; `:+` writes a sign, `:%` a share in per cent.

    What is not known reads "unknown".
    """
    return _Writer().format(template, e=e)
