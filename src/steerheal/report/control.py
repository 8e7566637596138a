"""The unsteered control in words: what the same heal on unsteered text did to the trait."""

import math

from steerheal.records import Reading, RoundRecord, RunRecord
from steerheal.report.words import change, one_line, tested

NONE = "no unsteered control was trained, so that what training alone does is unknown"


def control_gain(record: RunRecord, row: RoundRecord) -> Reading | None:
    """The control's change of the trait, on the prompts that the headline is read on."""
    if found := tested(record, row):
        return found.control.gain if found.control else None
    return row.control.read.gain if row.control and row.control.read else None


def over_control(record: RunRecord, row: RoundRecord) -> Reading | None:
    """The trait of healed less control, on the same prompts; None where none was read."""
    if found := tested(record, row):
        return found.over_control.gain if found.over_control else None
    return row.over_control


def lacking(row: RoundRecord) -> str:
    """Why a round has no reading of a control; empty where it has one."""
    if row.control is None:
        return NONE
    return one_line(row.control.reason) if row.control.read is None else ""


def beside(record: RunRecord, row: RoundRecord) -> str:
    """What stands beside the healed trait in the headline."""
    control, net = control_gain(record, row), over_control(record, row)
    if control is None or net is None:
        return lacking(row) or NONE
    return f"its unsteered control {change(control)}, healed less control {change(net)}"


def fault(record: RunRecord, row: RoundRecord) -> str:
    """What the control says against the trait; empty where it says nothing."""
    net = over_control(record, row)
    if net is None or net.low > 0:
        return ""
    if math.isnan(net.low):
        return "the trait could not be held against its unsteered control"
    return "the trait is not shown to be above its unsteered control, which was trained alike"
