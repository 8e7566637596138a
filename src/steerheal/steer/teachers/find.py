"""A teacher by its name; a bare function of the student and the round's vector is one as well."""

from steerheal.state.values import State
from steerheal.steer.teachers.teacher import Materials, Teacher
from steerheal.tables import TEACHERS


def find(name: str) -> Teacher:
    """The teacher of that name.

    Raises:
        UserError: no such teacher.
    """
    found = TEACHERS.find(name)
    if isinstance(found, Teacher):
        return found

    def make(of: Materials) -> State:
        return found(of.student, of.vector)

    return Teacher(make)
