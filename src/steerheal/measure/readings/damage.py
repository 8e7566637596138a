"""Readings that a push towards a trait must leave alone: plain prose, long answers, JSON."""

import statistics

from steerheal.measure.readings.table import Case, Entry, bare, mean_log, share_of
from steerheal.records import Reading


def _tail(case: Case) -> Reading:
    found = [row.tail_perplexity for row in case.scores.long]
    return bare(statistics.median(found), len(found))


ENTRIES = (
    Entry(
        name="prose_perplexity",
        title="perplexity of plain prose",
        kind="guard",
        unit="perplexity",
        needs=("persona",),
        value=lambda case: bare(case.scores.plain_perplexity),
        damage=1,
        brief=True,
        meaning="of the bundled prose under the state",
    ),
    Entry(
        name="long_perplexity",
        title="tail perplexity of long answers",
        kind="guard",
        unit="perplexity",
        needs=("long",),
        value=_tail,
        change=mean_log("long", lambda row: row.tail_perplexity),
        change_unit="nats/token",
        damage=1,
        meaning="median under the base; a change is that of the mean ln",
    ),
    Entry(
        name="long_distinct",
        title="distinct bigrams of long answers",
        kind="guard",
        unit="share",
        needs=("long",),
        of=lambda row: row.distinct_2,
        damage=-1,
    ),
    Entry(
        name="loop_share",
        title="long answers that loop",
        kind="guard",
        unit="share",
        damage=1,
        **share_of("long", lambda row: float(row.loops)),
    ),
    Entry(
        name="long_words",
        title="length of long answers",
        kind="guard",
        unit="words",
        needs=("long",),
        of=lambda row: float(row.words),
    ),
    Entry(
        name="json_is_valid",
        title="JSON replies that parse",
        kind="guard",
        unit="share",
        damage=-1,
        **share_of("json_replies", lambda row: float(row.valid)),
    ),
)
