"""t = p(· | h + d·v): the student under the round's vector v at dose d."""

from steerheal.state.values import State
from steerheal.steer.teachers.teacher import Materials, Teacher


def make(of: Materials) -> State:
    """The student at dose 1."""
    return of.student.steered(of.vector, 1.0)


TEACHER = Teacher(make)
