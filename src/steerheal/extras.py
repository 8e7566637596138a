"""What is installed only when asked for: which packages an extra brings, and how to install it."""

import importlib.util
from typing import Literal

from steerheal.errors import UserError

EXTRAS = {
    "ui": ("gradio",),
    "tune": ("optuna", "tomli_w"),
    "ray": ("ray",),
    "quantize": ("bitsandbytes",),
    "vllm": ("vllm",),
    "track": ("tensorboard",),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "mlflow": ("mlflow",),
}
"""The packages that an extra of `pyproject.toml` brings."""
Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]
TRACKERS: dict[Tracker, str] = {
    "tensorboard": "track",
    "wandb": "wandb",
    "trackio": "trackio",
    "mlflow": "mlflow",
}
"""The extra of every tracker of a run's metrics."""


def refuse_absent(extra: str, what: str) -> None:
    """Looks whether an extra is installed, without importing it.

    Args:
        extra: Its name.
        what: What needs it, as a sentence begins.

    Raises:
        UserError: it is not; the message says how to install it.
    """
    absent = [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if absent:
        raise UserError(
            f"{what} needs {' and '.join(absent)}, absent here: "
            f"`pip install 'steerheal[{extra}]'`, or `pip install '.[{extra}]'` in its source."
        )
