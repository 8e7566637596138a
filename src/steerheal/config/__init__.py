"""Settings: one small frozen model per stage, composed in `RunConfig`; presets; no torch.

The sentence under a setting is its only documentation: the command line shows it as help.
"""

from steerheal.bounds import (
    Band,
)
from steerheal.config.base import (
    MOST_LISTED,
    Doses,
    Settings,
)
from steerheal.config.measuring import (
    CheckSettings,
    Conditions,
    Instrument,
    MeasureSettings,
)
from steerheal.config.model import (
    Date,
    ModelSettings,
    TemplateVariables,
    template_variables,
)
from steerheal.config.run import (
    PRESETS,
    RunConfig,
    merge,
    resolve,
    unlike,
)
from steerheal.config.steering import (
    DoseSettings,
    PushSettings,
    SamplingSettings,
    VectorSettings,
)
from steerheal.config.training import (
    FilterSettings,
    HealSettings,
)
from steerheal.config.validation import (
    MOST_BYTES,
    problems,
    read_toml,
    validated,
)

__all__ = [
    "MOST_BYTES",
    "MOST_LISTED",
    "PRESETS",
    "Band",
    "CheckSettings",
    "Conditions",
    "Date",
    "DoseSettings",
    "Doses",
    "FilterSettings",
    "HealSettings",
    "Instrument",
    "MeasureSettings",
    "ModelSettings",
    "PushSettings",
    "RunConfig",
    "SamplingSettings",
    "Settings",
    "TemplateVariables",
    "VectorSettings",
    "merge",
    "problems",
    "read_toml",
    "resolve",
    "template_variables",
    "unlike",
    "validated",
]
