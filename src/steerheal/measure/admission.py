"""Whether a judge may be believed: what it makes of replies that were labelled by reading.

    AUC within a group = P(a coherent reply is rated above an incoherent one of the same group)
A group is one persona, temperature and dose. Over all of them a judge would be given credit for
telling a high dose from a low one; within them only for telling replies apart.
"""

from collections.abc import Callable, Sequence

import numpy as np

from steerheal.measure.judge import Exchange, judge
from steerheal.models.model import ChatModel
from steerheal.prompts import lines
from steerheal.records import Admission, Record


class Labelled(Record):
    """A reply that the embedded model wrote, and what a reader made of it."""

    prompt: str
    reply: str
    group: str
    """Persona, temperature and dose that it was written at."""
    coherent: bool


def labelled() -> tuple[Labelled, ...]:
    """The bundled replies."""
    return tuple(map(Labelled.model_validate_json, lines("labelled", "jsonl")))


def admission(
    chat: ChatModel,
    replies: Sequence[Labelled],
    progress: Callable[[int], None] = lambda _: None,
) -> Admission:
    """What the judge makes of labelled replies.

    Args:
        chat: The judge.
        replies: What was labelled.
        progress: Called with the number of readings done, `judge.looks` per reply.
    """
    said = [Exchange(one.prompt, one.reply) for one in replies]
    rows = judge(chat, said, progress=progress)
    return Admission(
        judge=chat.name,
        fingerprint=chat.fingerprint,
        auc=within(replies, [row.mean for row in rows]),
        replies=len(replies),
    )


def within(replies: Sequence[Labelled], rated: Sequence[float]) -> float:
    """AUC within groups, over all pairs of a coherent and an incoherent reply; NaN without any."""
    wins, pairs = 0.0, 0
    for group in {one.group for one in replies}:
        mine = [i for i, one in enumerate(replies) if one.group == group]
        up = np.array([rated[i] for i in mine if replies[i].coherent])
        down = np.array([rated[i] for i in mine if not replies[i].coherent])
        wins += (up[:, None] > down).sum() + 0.5 * (up[:, None] == down).sum()
        pairs += len(up) * len(down)
    return float(wins) / pairs if pairs else float("nan")
