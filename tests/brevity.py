"""A reading from outside the package: the share of short answers that keep to ten words.

It brings its own rows: prompts that the state answers, and how long each answer is.
"""

from collections.abc import Sequence

from steerheal.measure.readings.table import Asking, Entry, share_of
from steerheal.records import UnitRow

ASKED = ("Name one colour.", "Name one fruit.", "Name one town.")
MOST = 10


def rows(asking: Asking) -> Sequence[UnitRow]:
    return [
        UnitRow(
            id=said.completion.prompt,
            value=float(len(said.completion.text.split()) <= MOST),
            parts={"nll": said.nll, "kl": said.kl},
            completion=said.completion,
        )
        for said in asking.answers(ASKED, tokens=6, greedy=True)
    ]


ENTRY = Entry(
    name="kept_brief",
    title="answers that keep to ten words",
    kind="coherence",
    unit="share",
    damage=-1,
    brief=True,
    swept=True,
    rows=rows,
    size=len(ASKED),
    meaning="share of three short questions answered in at most ten words",
    **share_of("kept_brief", lambda row: row.value),
)
