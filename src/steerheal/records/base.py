"""What every record is, a number with its interval, and the constants that records share."""

import math
from typing import Self

from pydantic import BaseModel, ConfigDict

VERSION = 3
READS = (2, 3)
"""Versions of records that are read; a run of an older one goes on as one of this."""
FOUNDATIONS = ("care", "fairness", "loyalty", "authority", "sanctity", "liberty", "social")
"""Canonical order of every seven-vector; `social` is odd but not morally wrong."""
BREAKDOWN = 1.7
"""Nats per token of cumulative KL to base at which additive steering without healing is published
to break down, whatever its schedule."""


class Record(BaseModel):
    """Frozen and closed; NaN survives JSON as the string "NaN"."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, ser_json_inf_nan="strings", use_attribute_docstrings=True
    )


class Reading(Record):
    """A number with its 95 % interval."""

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    """Independent units (prompts, vignettes) behind it."""
    reason: str = ""
    """Why the value, or its interval, is NaN."""

    @property
    def moved(self) -> bool:
        """Whether the interval excludes 0; an unknown reading has not moved."""
        return self.low > 0 or self.high < 0

    @classmethod
    def unknown(cls, reason: str) -> Self:
        """A reading nobody could take."""
        return cls(value=math.nan, reason=reason)
