"""A healed round in one sentence in plain words: what was changed, what broke, what came back."""

import math

from steerheal.records import Reading, RoundRecord, RunRecord, Summary
from steerheal.report.words import coherence_title

STEPS = ("steered", "healed")
"""The comparison of a healed state with the steered one before it."""


def plainly(record: RunRecord, row: RoundRecord) -> str:
    """The sentence; empty where no doses said which reading of coherence sees, or none was read."""
    if record.sight is None or record.base is None or row.steered is None or row.healed is None:
        return ""
    start = f"Steering {_changed(row.steered.gain)}"
    if not record.sight.head:
        return (
            f"{start}; no reading of coherence saw damage on this model, so that this run cannot "
            f"say what steering broke or what the heal gave back{_kept(row)}."
        )
    title, way = coherence_title(row.steered), f"{_share(record.base)} to {_share(row.steered)}"
    if not row.steered.mass_change.high < 0:
        return (
            f"{start} and broke nothing that shows ({title} from {way}), so that there was nothing "
            f"to give back{_kept(row)}."
        )
    return f"{start} and broke coherence ({title} from {way}); {_back(row)}{_kept(row)}."


def _changed(gain: Reading) -> str:
    if not gain.moved:
        return "is not shown to have changed the trait"
    return "raised the trait" if gain.value > 0 else "lowered the trait, against what was meant,"


def _back(row: RoundRecord) -> str:
    """Whether the heal gave back what steering had broken."""
    assert row.healed is not None
    paired = [item.mass_change for item in row.comparisons if (item.a, item.b) == STEPS]
    after = _share(row.healed)
    if not (paired and paired[0].low > 0):
        return f"healing does not show: it reads {after} after the heal"
    share = row.recovered.value if row.recovered else math.nan
    much = "" if math.isnan(share) else f", {_percent(share)} of what was lost"
    return f"the heal brought it back to {after}{much}"


def _kept(row: RoundRecord) -> str:
    """How much of the trait the heal kept."""
    share = row.retain.value if row.retain else math.nan
    if math.isnan(share):
        return ""
    net = row.control.retain.value if row.control else math.nan
    less = (
        "" if math.isnan(net) else f" ({_percent(net)} once what training alone does is taken off)"
    )
    return f", with {_percent(share)} of the trait kept{less}"


def _share(read: Summary) -> str:
    return _percent(read.mass.value)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if math.isfinite(share) else "unknown"
