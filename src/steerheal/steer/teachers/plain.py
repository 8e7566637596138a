"""t = p: the student as it is, the control."""

from steerheal.state.values import State
from steerheal.steer.teachers.teacher import Materials, Teacher


def make(of: Materials) -> State:
    """The student."""
    return of.student


TEACHER = Teacher(make, dosed=False)
