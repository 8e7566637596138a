"""The vector by a hook: h + multiple·d·v, d the dose that the run would steer at."""

from steerheal.pipeline.arms.kind import Arm, Bench, Kind
from steerheal.state.values import base
from steerheal.state.vector import SteeringVector


def make(of: Bench) -> Arm:
    """The base under the arm's vector."""
    return hooked(of, of.vector())


def hooked(of: Bench, vector: SteeringVector) -> Arm:
    """The base under a vector at multiples of the run's dose."""
    knee = of.knee()
    return Arm(lambda multiple: base().steered(vector, multiple * knee))


KIND = Kind(make, along="dose", family="steering")
