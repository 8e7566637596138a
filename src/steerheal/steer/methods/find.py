"""A method by its name; a bare function of a source of states is one as well."""

from steerheal.steer.methods.method import Method
from steerheal.tables import METHODS


def find(name: str) -> Method:
    """The method of that name.

    Raises:
        UserError: no such method.
    """
    found = METHODS.find(name)
    return found if isinstance(found, Method) else Method(found)
