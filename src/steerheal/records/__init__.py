"""What travels between stages: frozen, versioned records. No torch, no disk.

Units: log-probabilities and divergences are in nats; readings that nobody could take are NaN and
carry the reason.
"""

from steerheal.records.base import (
    BREAKDOWN,
    FOUNDATIONS,
    VERSION,
    Reading,
    Record,
)
from steerheal.records.readings import (
    Comparison,
    DosePoint,
    Evaluation,
    Summary,
    Sweep,
)
from steerheal.records.rows import (
    CanaryRow,
    HealthRow,
    JsonRow,
    PersonaRow,
    Scores,
    VignetteRow,
)
from steerheal.records.run import (
    Finding,
    Internalisation,
    OnTest,
    RoundRecord,
    RunRecord,
    Shown,
    StageMark,
)
from steerheal.records.text import (
    Calibration,
    Completion,
    Harvest,
    Judged,
    Thought,
    Verdict,
    WalkStep,
)
from steerheal.records.training import (
    HealLog,
    HealStep,
)

__all__ = [
    "BREAKDOWN",
    "FOUNDATIONS",
    "VERSION",
    "Calibration",
    "CanaryRow",
    "Comparison",
    "Completion",
    "DosePoint",
    "Evaluation",
    "Finding",
    "Harvest",
    "HealLog",
    "HealStep",
    "HealthRow",
    "Internalisation",
    "JsonRow",
    "Judged",
    "OnTest",
    "PersonaRow",
    "Reading",
    "Record",
    "RoundRecord",
    "RunRecord",
    "Scores",
    "Shown",
    "StageMark",
    "Summary",
    "Sweep",
    "Thought",
    "Verdict",
    "VignetteRow",
    "WalkStep",
]
