"""Readings of the free answers to the persona's prompts, each judged by the unsteered base."""

import statistics

from steerheal.measure.readings.table import Case, Entry, bare, mean_log
from steerheal.measure.stats import mean
from steerheal.records import Reading


def _median(case: Case) -> Reading:
    found = [row.perplexity for row in case.scores.persona]
    return bare(statistics.median(found), len(found))


def _kl(case: Case) -> Reading:
    return mean([row.kl_to_base for row in case.scores.persona])


def _logodds(case: Case) -> Reading:
    return mean([row.logodds for row in case.scores.persona])


ENTRIES = (
    Entry(
        name="persona_logodds",
        title="persona log-odds",
        kind="trait",
        unit="nats/token",
        needs=("persona",),
        of=lambda row: row.logodds,
        value=_logodds,
        part="trait",
        brief=True,
        meaning="how much likelier the positive pole makes the answers than the negative one",
    ),
    Entry(
        name="answers_perplexity",
        title="perplexity of free answers",
        kind="coherence",
        unit="perplexity",
        needs=("persona",),
        value=_median,
        change=mean_log("persona", lambda row: row.perplexity),
        change_unit="nats/token",
        damage=1,
        part="fluency",
        brief=True,
        meaning="median under the base; a change is that of the mean ln",
    ),
    Entry(
        name="answers_distinct",
        title="distinct bigrams of free answers",
        kind="coherence",
        unit="share",
        needs=("persona",),
        of=lambda row: row.distinct_2,
        damage=-1,
    ),
    Entry(
        name="answers_repetition",
        title="repeated trigrams of free answers",
        kind="coherence",
        unit="share",
        needs=("persona",),
        of=lambda row: row.word_repetition,
        damage=1,
    ),
    Entry(
        name="answers_kl",
        title="KL to the base",
        kind="coherence",
        unit="nats/token",
        needs=("persona",),
        of=lambda row: row.kl_to_base,
        value=_kl,
        damage=1,
        part="distance",
        brief=True,
        meaning="KL(state‖base) on the state's own free answers",
    ),
)
