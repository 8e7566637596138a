"""t = softmax(z + ½(z₊ − z₋)): the student's logits z, and z± under +d·v and −d·v.

With the parts o = ½(z₊ − z₋) and e = ½(z₊ + z₋) − z, odd and even in v, the steered student has
z + o + e. What both signs do alike, e, is left out, and ln t − ln p is odd in v up to the
normaliser. At dose 0 it is the student.
"""

from steerheal.state.formulas import contrast
from steerheal.state.values import State
from steerheal.steer.teachers.teacher import Materials, Teacher


def make(of: Materials) -> State:
    """The student and half of what its doses 1 and −1 differ by."""
    plus, minus = (of.student.steered(of.vector, sign) for sign in (1.0, -1.0))
    return contrast(of.student, plus, minus, 0.5)


TEACHER = Teacher(make, mixed=True)
