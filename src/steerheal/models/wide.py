"""The widest float of a device: Apple's has no float64, and says so by an error.

What needs float64 is computed on the device where it has it, else on the CPU, with the same steps,
so that a seed gives the same tokens on every device that gives the same probabilities.
"""

import torch
from torch import Tensor

CPU = torch.device("cpu")
WITH_FLOAT64 = ("cpu", "cuda")
"""Kinds of devices that compute in float64."""


def home(device: torch.device) -> torch.device:
    """Where float64 is computed for tensors of this device."""
    return device if device.type in WITH_FLOAT64 else CPU


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float64, moved to where that can be computed."""
    return tensor.to(home(tensor.device)).double()
