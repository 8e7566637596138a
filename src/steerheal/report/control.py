"""The unsteered control in words: what the same heal on unsteered text did to the trait."""

import math

from steerheal.records import OnTest, Readings, RoundRecord, RunRecord
from steerheal.report.words import change, one_line, trait_read

NONE = "no unsteered control was trained, so that what training alone does is unknown"


def control_read(record: RunRecord, row: RoundRecord) -> Readings | None:
    """The control against the base, where the headline reads the trait."""
    found = trait_read(record, row)
    if isinstance(found, OnTest):
        return found.control
    return row.control.read if row.control else None


def over_control(record: RunRecord, row: RoundRecord) -> Readings | None:
    """Healed less control, in the same place; None where none was read."""
    found = trait_read(record, row)
    return found.over_control if isinstance(found, OnTest) else row.beyond_control


def lacking(row: RoundRecord) -> str:
    """Why a round has no reading of a control; empty where it has one."""
    if row.control is None:
        return NONE
    return one_line(row.control.reason) if row.control.read is None else ""


def beside(record: RunRecord, row: RoundRecord) -> str:
    """What stands beside the healed trait in the headline."""
    control, net = control_read(record, row), over_control(record, row)
    if control is None or net is None:
        return lacking(row) or NONE
    return f"its unsteered control {change(control)}, healed less control {change(net)}"


def fault(record: RunRecord, row: RoundRecord) -> str:
    """What the control says against the trait; empty where it says nothing."""
    net = over_control(record, row)
    if net is None or net.gain.low > 0:
        return ""
    if math.isnan(net.gain.low):
        return "the trait could not be held against its unsteered control"
    return "the trait is not shown to be above its unsteered control, which was trained alike"
