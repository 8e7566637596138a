"""What travels between stages: frozen, versioned records. No torch, no disk.

Units: log-probabilities and divergences are in nats; readings that nobody could take are NaN and
carry the reason.
"""

from steerheal.records.base import (
    BREAKDOWN,
    FOUNDATIONS,
    READS,
    VERSION,
    Reading,
    Record,
)
from steerheal.records.curve import (
    Curve,
    CurvePoint,
)
from steerheal.records.fisher import (
    Fisher,
    RankRecord,
    RankRow,
)
from steerheal.records.judge import (
    Admission,
)
from steerheal.records.readings import (
    UNREAD,
    Comparison,
    DosePoint,
    Evaluation,
    OnTest,
    Part,
    Readings,
    Sight,
    Summary,
    Sweep,
)
from steerheal.records.rows import (
    CanaryRow,
    HealthRow,
    JsonRow,
    PersonaRow,
    Scores,
    UnitRow,
    VignetteRow,
)
from steerheal.records.run import (
    Control,
    Finding,
    Internalisation,
    RoundRecord,
    RunRecord,
    Shown,
    StageMark,
)
from steerheal.records.text import (
    Calibrated,
    Calibration,
    Completion,
    Harvest,
    Judged,
    Thought,
    Unsteered,
    Verdict,
    WalkStep,
)
from steerheal.records.training import (
    GroupLog,
    HealLog,
    HealStep,
)

__all__ = [
    "BREAKDOWN",
    "FOUNDATIONS",
    "READS",
    "UNREAD",
    "VERSION",
    "Admission",
    "Calibrated",
    "Calibration",
    "CanaryRow",
    "Comparison",
    "Completion",
    "Control",
    "Curve",
    "CurvePoint",
    "DosePoint",
    "Evaluation",
    "Finding",
    "Fisher",
    "GroupLog",
    "Harvest",
    "HealLog",
    "HealStep",
    "HealthRow",
    "Internalisation",
    "JsonRow",
    "Judged",
    "OnTest",
    "Part",
    "PersonaRow",
    "RankRecord",
    "RankRow",
    "Reading",
    "Readings",
    "Record",
    "RoundRecord",
    "RunRecord",
    "Scores",
    "Shown",
    "Sight",
    "StageMark",
    "Summary",
    "Sweep",
    "Thought",
    "UnitRow",
    "Unsteered",
    "Verdict",
    "VignetteRow",
    "WalkStep",
]
