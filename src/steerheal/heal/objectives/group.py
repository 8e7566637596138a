"""Group: the fit of a token is its cross-entropy, weighted by the advantage (`heal.group`)."""

from steerheal.heal.objectives.objective import Objective
from steerheal.heal.objectives.sft import fit

OBJECTIVE = Objective(fit, rewarded=True)
