"""t = p(· | s⁺): the student under the positive pole as system prompt, without a vector."""

from steerheal.state.values import State
from steerheal.steer.teachers.teacher import Materials, Teacher


def make(of: Materials) -> State:
    """The prompted student."""
    return of.student.prompted(of.persona.positive, "positive pole")


TEACHER = Teacher(make, dosed=False)
