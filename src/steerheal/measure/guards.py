"""Outside damage guards: tasks of lm-evaluation-harness, when it is installed.

The harness is optional and heavy; this module is the only one that knows it.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING

from steerheal.errors import UserError

if TYPE_CHECKING:
    from steerheal.models.model import ChatModel

HARNESS = "lm_eval"


def known(guard: str) -> str:
    """The task that a guard names.

    Raises:
        UserError: another form of guard, or the harness is not installed.
    """
    kind, _, task = guard.partition(":")
    if kind != HARNESS or not task:
        raise UserError(f"Unknown guard {guard!r}. Write lm_eval:TASK, for instance lm_eval:piqa.")
    if importlib.util.find_spec(HARNESS) is None:
        raise UserError(f"The guard {guard} needs the harness: `pip install lm-eval`.")
    return task


def read(chat: "ChatModel", guard: str, *, limit: int | None = None) -> dict[str, float]:
    """The task's metrics on the model in its present state, by name.

    Args:
        chat: The model.
        guard: `lm_eval:TASK`.
        limit: Most documents of the task; None is all of them.

    Raises:
        UserError: another form of guard, the harness is not installed, or it refuses the task.
    """
    task = known(guard)
    harness = importlib.import_module(HARNESS)
    wrapper = importlib.import_module(f"{HARNESS}.models.huggingface").HFLM
    try:
        report = harness.simple_evaluate(
            model=wrapper(pretrained=chat.net, tokenizer=chat.tokenizer),
            tasks=[task],
            limit=limit,
        )
    except (KeyError, ValueError) as error:
        raise UserError(f"The harness refused the task {task!r}: {error}") from error
    return {
        f"{guard}/{name.partition(',')[0]}": float(value)
        for name, value in report["results"][task].items()
        if isinstance(value, int | float)
    }
