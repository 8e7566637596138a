"""DPO: the fit of a token is its cross-entropy, weighted by `heal.preference`."""

from steerheal.heal.objectives.objective import Objective
from steerheal.heal.objectives.sft import fit

OBJECTIVE = Objective(fit, paired=True)
