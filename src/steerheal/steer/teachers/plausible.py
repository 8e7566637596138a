"""t(v) ∝ p(v | h + d·v) · 1[p₀(v) ≥ ε·max p₀]: steered, without what the base finds implausible.

At ε = 0 it is the steered student itself.

Source: the mask of contrastive decoding, Li et al. 2022, arXiv:2210.15097.
"""

from steerheal.state import formulas
from steerheal.state.values import State, base
from steerheal.steer.teachers import vector
from steerheal.steer.teachers.teacher import Materials, Teacher


def make(of: Materials) -> State:
    """The student at dose 1, masked by the base where ε is above 0."""
    steered = vector.make(of)
    return formulas.plausible(steered, base(), of.epsilon) if of.epsilon else steered


TEACHER = Teacher(make, mixed=True)
