"""A run's record as the content of a paper."""

from functools import partial

from steerheal.measure.readings.table import listed, played
from steerheal.numbers import number
from steerheal.records import Comparison, RoundRecord, RunRecord
from steerheal.report import table
from steerheal.report.guard import difference_tables, guard_table
from steerheal.report.headline import conditions, headline_parts, selected, stuck
from steerheal.report.paper.content import Content, Picture, told
from steerheal.report.paper.method import (
    UNDOSED,
    Setting,
    healing_words,
    judge_words,
    model_words,
    steering_words,
)
from steerheal.report.paper.prose import Prose, cite
from steerheal.report.plates import PLATES
from steerheal.report.table import Table
from steerheal.report.words import (
    chosen,
    coherence_title,
    one_line,
    persona_name,
    stand_ins,
)
from steerheal.tables import TEACHERS

PAIRS = (("base", "healed"), ("steered", "healed"), ("control", "healed"))
"""Of which states differences are told: the second less the first."""


def content(record: RunRecord) -> Content:
    """All that the paper says, by rules that do not know how the run went."""
    row, (first, beside) = chosen(record), headline_parts(record)
    return Content(
        title=f"Steering and healing the persona {persona_name(record)} in "
        f"{record.environment.get('model', 'a language model')}",
        abstract=first,
        introduction=_introduction(record),
        method=[
            model_words(record.config, record.environment, record.persona),
            steering_words(record.config),
            *healing_words(record.config),
            _reading_words(record),
            *filter(None, [judge_words(record.judge)]),
        ],
        equation=True,
        findings=[text for text in (first, beside) if text],
        told=[*_conditions(record), *_told(row)],
        limitations=_limits(record, row),
        pictures=[
            Picture(
                plate.name,
                partial(plate.draw, record),
                f"{plate.title}. {plate.seen(record)} {plate.how}",
            )
            for plate in PLATES
            if not plate.lacks(record)
        ],
        tables=_tables(record, row),
    )


def _introduction(record: RunRecord) -> list[Prose]:
    have = Setting(record.config)
    uses = [f"method {have('vector.method')}"] if have("teacher") not in UNDOSED else []
    return [
        [
            "A steering vector moves a language model's hidden states towards a trait",
            cite(*uses),
            ". It needs a hook at inference, and at the dose at which the trait is plain the text "
            f"often breaks. Here text is written by {have.row(TEACHERS, 'teacher')}, what is "
            "coherent of it is kept, and an adapter that is trained on that is to carry the trait "
            "in the weights",
            cite(f"adapter {have('heal.adapter')}"),
            ": no hook, no prompt and no labelled data. Whether the trait is still there then, and "
            "what it costs in coherence, is read on the same units before and after.",
        ]
    ]


def _reading_words(record: RunRecord) -> Prose:
    names = dict.fromkeys([] if record.base is None else record.base.values)
    titles = ", ".join(entry.title for entry in listed(names))
    tested = (
        f"The headline is read on {record.test.prompts} test prompts that chose nothing. "
        if record.test is not None
        else ""
    )
    rounds = Setting(record.config).number("rounds")
    trait = played(record.base, "trait").title if record.base else "not read"
    control = (
        "After a round that folds, the same heal is trained on what its student writes without "
        "the vector, the unsteered control. "
        if any(row.control for row in record.rounds)
        else ""
    )
    return [
        f"The loop takes at most {rounds} rounds, each from the student of the one before. "
        f"{control}The trait is {trait}, and coherence is "
        f"{coherence_title(record.base)}. Vignettes are read by the instrument "
        f"{record.instrument or 'that the record does not name'}",
        cite(f"instrument {record.instrument}", "reading foundations"),
        f". Read in every state: {titles}. {tested}Every number stands with its interval at 95 %: "
        "Student's t over prompts, vignettes or statements, paired between states; shares",
        cite("statistics shares"),
        " and ratios",
        cite("statistics ratios"),
        f" with their own. There is one seed, {Setting(record.config).number('seed')}.",
    ]


def _conditions(record: RunRecord) -> list[str]:
    words = {True: "Holds", False: "Does not hold", None: "Could not be told"}
    # The show prompts are in files beside the record, which a paper does not read.
    return [f"{words[item.holds]}: {item.text} ({item.numbers})."
            for item in conditions(record, None)[:2]]  # fmt: skip


def _told(row: RoundRecord | None) -> list[str]:
    """What the chosen round's paired differences say of trait and coherence."""
    if row is None:
        return []
    found = {(item.a, item.b): item for item in row.comparisons}
    return [
        sentence
        for a, b in PAIRS
        if (item := found.get((a, b))) is not None
        for sentence in _of_pair(item)
    ]


def _of_pair(item: Comparison) -> list[str]:
    more, less = (_state(name) for name in (item.b, item.a))
    return [
        told(more, less, entry, reading)
        for entry, reading in (
            (played(item, "trait"), item.gain),
            (played(item, "coherence"), item.mass_change),
        )
    ]


def _state(name: str) -> str:
    return {"control": "the unsteered control", "base": "the base"}.get(name, f"the {name} student")


def _limits(record: RunRecord, row: RoundRecord | None) -> list[str]:
    """What the record itself speaks against a claim, and what one run cannot show."""
    said = [
        "One seed: every interval holds the chance of prompts, vignettes or statements, and not "
        "that of another seed.",
        "One model and one persona: nothing here says how another would do.",
    ]
    if row is not None and row.healed is not None:
        said += [stand_ins(record, row), selected(record)]
        answers = record.test.prompts if record.test else row.healed.free_gain.n
        said.append(f"Free answers are read on {number(float(answers))} prompts.")
    if record.test is None:
        said.append(f"The headline is read on what chose the round: {record.test_reason}.")
    if record.sight is not None and record.sight.blind:
        titles = ", ".join(entry.title for entry in listed(record.sight.blind))
        said.append(f"Blind to damage on this model, and no evidence of coherence: {titles}.")
    said += [stuck(record, item) for item in record.rounds]
    said += [one_line(note) + "." for note in record.notes]
    return [text[:1].upper() + text[1:] for text in said if text]


def _tables(record: RunRecord, row: RoundRecord | None) -> dict[str, Table]:
    found = {
        "course": table.rounds_table(record, "Every round: its text, and the trait and coherence "
                                     "that came out", table.COURSE),
        "price": table.rounds_table(record, "What every heal kept, bought back and cost",
                                    table.PRICE),
        "heals": table.heals_table(record),
    }  # fmt: skip
    if (states := guard_table(record)) is not None:
        found["states"] = states
    shown = -1 if row is None else row.round
    for place, item in difference_tables(record):
        if place == shown:
            found["differences"] = item
    for place, item in table.foundations_tables(record):
        if place == shown:
            found["foundations"] = item._replace(title=f"Moral foundations. {item.title}")
    return {name: item for name, item in found.items() if item.rows}
