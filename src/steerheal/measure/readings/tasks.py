"""The share of short instructions that a state still does, as code checks it."""

from collections.abc import Sequence

from steerheal.measure import tasks
from steerheal.measure.readings.table import Asking, Entry, share_of
from steerheal.records import UnitRow


def _rows(asking: Asking) -> Sequence[UnitRow]:
    asked = tasks.load()[: asking.measure.tasks]
    if not asked:
        return ()
    said = asking.writes([task.prompt for task in asked], asking.measure.task_tokens)
    return [
        UnitRow(id=task.id, value=float(tasks.passed(task, answer.text)), completion=answer)
        for task, answer in zip(asked, said, strict=True)
    ]


ENTRIES = (
    Entry(
        name="tasks_done",
        title="tasks done",
        kind="guard",
        unit="share",
        damage=-1,
        brief=True,
        rows=_rows,
        size=lambda settings: settings.tasks,
        meaning="short instructions whose greedy answer passes its check",
        **share_of("tasks_done", lambda row: row.value),
    ),
)
