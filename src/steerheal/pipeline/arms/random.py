"""A random vector whose KL at dose 1 is the vector's, at the same doses: the control of a hook."""

from dataclasses import replace

from steerheal.errors import UserError, first_line
from steerheal.pipeline.arms.kind import FIRST, Arm, Bench, Kind, Unmade
from steerheal.pipeline.arms.steered import hooked
from steerheal.state.values import base


def make(of: Bench) -> Arm:
    """The base under such a vector, drawn anew at every seed."""
    config = of.stages.config
    vector = config.vector.model_copy(update={"method": "random", "seed": config.seed})
    drawn = config.model_copy(update={"vector": vector})
    stages = replace(of.part("drawn").stages, config=drawn)
    try:
        return hooked(of, stages.vector(FIRST, base()))
    except UserError as error:
        raise Unmade(first_line(error)) from error


KIND = Kind(make, along="dose", family="control")
