"""A finished run's free answers before a judge: those of every state and dose, in one stage.

They are read after the last decision. What coherence is read by, the floor, the checks and the best
round do not look at them; whether the judge sees damage here is said as of other readings.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from steerheal import ranks
from steerheal.console import Console
from steerheal.measure import sight
from steerheal.measure.judge import Exchange, Judges, looks, poles_of
from steerheal.measure.readings import table
from steerheal.measure.readings.judged import SENSE, Judgements, JudgeRow, unit_rows
from steerheal.numbers import number
from steerheal.personas import Axis, Persona
from steerheal.pipeline.declared import BASE, CONTROL, JUDGED
from steerheal.pipeline.judging import Judging
from steerheal.pipeline.stage_store import Store
from steerheal.records import (
    Admission,
    Completion,
    OnTest,
    Readings,
    RoundRecord,
    RunRecord,
    Scores,
    Sight,
    Sweep,
)
from steerheal.store import TEST, read_record, read_scores, round_folder

R = TypeVar("R", bound=Readings)
Place = tuple[object, ...]
"""Round and role of a state, or which prompts or dose the answers are of."""
ROLES = ("steered", "healed", CONTROL)
EMPTY = Scores(state="", instrument="", vignettes=(), canary=(), persona=())
ORIGIN: Place = (BASE, "base")
TESTED, DOSE = "test", "dose"


def judged(
    record: RunRecord, store: Store, by: Judging, persona: Persona, console: Console
) -> RunRecord:
    """The record with what the judge makes of the run, and a sentence on what that is worth.

    Args:
        record: Of a run whose loop has ended.
        store: Where its stages lie.
        by: The judge. No other model should be in memory.
        persona: The run's.
        console: Told how it goes.

    Raises:
        UserError: the judge cannot be loaded, or is another one by now.
    """
    ranks.wait()  # until the leader has put every file into its place
    said = dict(_answers(record, store.folder))
    every = [one for texts in said.values() for one in texts]
    found = staged(every, store, by, persona, title="judging the answers", console=console)
    rows, states = iter(found), dict[Place, Scores]()
    for place, texts in said.items():
        own = unit_rows(texts, [next(rows) for _ in texts], admitted=by.found.admitted)
        states[place] = EMPTY.model_copy(update={"own": own})
    return _told(_Read(states, persona.axis).run(record), by.found, console)


def staged(
    said: Sequence[Completion],
    store: Store,
    by: Judges,
    persona: Persona,
    *,
    title: str,
    console: Console,
) -> tuple[JudgeRow, ...]:
    """A row per answer, in the order given: a stage of the answers, the judge and the poles.

    Raises:
        UserError: the judge cannot be loaded, or is another one by now.
    """
    asked, poles = [Exchange(one.prompt, one.text) for one in said], poles_of(persona)
    made = JUDGED.of(by, asked, poles)

    def make() -> Judgements:
        with console.stage(title, looks(poles) * len(asked)) as progress:
            return made.make(progress=progress)

    keeps = made.stage.artifact
    return store.stage(
        made.stage.name, BASE, made.key, make=make, save=keeps.save, load=keeps.load
    ).rows


def _answers(record: RunRecord, folder: Path) -> Iterator[tuple[Place, Sequence[Completion]]]:
    """Every free answer that the run has saved."""
    yield ORIGIN, _texts(read_scores(folder, BASE, "base"))
    for row in record.rounds:
        control = row.control.read if row.control else None
        for role, state in zip(ROLES, (row.steered, row.healed, control), strict=True):
            if state is not None:
                yield (row.round, role), _texts(read_scores(folder, row.round, role))
    for role, place in _tested(record, folder):
        yield (TESTED, role), _texts(read_record(place / TEST, Scores))
    swept, file = _sweep(record), round_folder(folder, 0) / "sweep.json"
    if swept is not None and file.is_file():
        sweep = read_record(file, Sweep)
        yield (DOSE,), sweep.said
        for k, point in enumerate(sweep.points):
            yield (DOSE, k), point.said


def _tested(record: RunRecord, folder: Path) -> Iterator[tuple[str, Path]]:
    """What answered the test prompts, and where that lies."""
    if record.test is not None:
        there = round_folder(folder, record.test.round)
        yield from (("base", round_folder(folder, BASE)), ("healed", there))
        if record.test.control is not None:
            yield CONTROL, there / CONTROL


def _texts(scores: Scores) -> list[Completion]:
    return [row.completion for row in scores.persona]


@dataclass(frozen=True)
class _Read:
    """What a judge made of every state's answers."""

    states: Mapping[Place, Scores]
    axis: Axis

    def of(self, read: R, place: Place, less: Place = ORIGIN, origin: Place = ORIGIN) -> R:
        """Readings of a state with the judge's, and with how these changed from another state."""
        if place not in self.states or less not in self.states:
            return read
        b, a, base = (self.states[one] for one in (place, less, origin))
        case, pair = table.Case(b, base, self.axis), table.Pair(b, a, base, self.axis)
        mine = table.listed(b.own)
        values = {entry.name: entry.read(case) for entry in mine}
        changes = {entry.name: entry.differ(pair) for entry in mine}
        return read.model_copy(
            update={"values": read.values | values, "changes": read.changes | changes}
        )

    def round(self, row: RoundRecord) -> RoundRecord:
        """A round with the judge's readings."""
        places = {role: (row.round, role) for role in ROLES} | {"base": ORIGIN}
        control, sweep = row.control, row.sweep
        if control is not None and control.read is not None:
            control = control.model_copy(update={"read": self.of(control.read, places[CONTROL])})
        if sweep is not None:
            points = (
                point.model_copy(
                    update={"summary": self.of(point.summary, (DOSE, k), (DOSE,), (DOSE,))}
                )
                for k, point in enumerate(sweep.points)
            )
            sweep = sweep.model_copy(update={"points": tuple(points)})
        compared = (self.of(one, places[one.b], places[one.a]) for one in row.comparisons)
        return row.model_copy(
            update={
                "steered": row.steered and self.of(row.steered, places["steered"]),
                "healed": row.healed and self.of(row.healed, places["healed"]),
                "control": control,
                "comparisons": tuple(compared),
                "sweep": sweep,
            }
        )

    def tested(self, test: OnTest) -> OnTest:
        """What was read on the test prompts with the judge's readings."""
        base, healed, control = ((TESTED, role) for role in ("base", "healed", CONTROL))
        net = test.over_control
        return self.of(test, healed, base, base).model_copy(
            update={
                "control": test.control and self.of(test.control, control, base, base),
                "over_control": net and self.of(net, healed, control, base),
            }
        )

    def run(self, record: RunRecord) -> RunRecord:
        """A run with the judge's readings."""
        return record.model_copy(
            update={
                "base": record.base and self.of(record.base, ORIGIN),
                "rounds": tuple(map(self.round, record.rounds)),
                "test": record.test and self.tested(record.test),
            }
        )


def _told(record: RunRecord, found: Admission, console: Console) -> RunRecord:
    """The record with who judged it, whether that judge sees damage here, and a note on both."""
    swept = _sweep(record)
    seen = sight.sight(swept) if swept else None
    words = f"{found.words()}."
    if found.admitted:
        words += f" {_sees(seen)} It was read after the last decision, and nothing went by it."
    console.note(words)
    whole = record.sight
    if whole is not None and seen is not None:
        whole = whole.model_copy(update={"sees": seen.sees, "blind": seen.blind})
    return record.model_copy(
        update={"judge": found, "sight": whole, "notes": (*record.notes, words)}
    )


def _sees(seen: Sight | None) -> str:
    if seen is None or SENSE not in (*seen.sees, *seen.blind):
        return "Whether it sees damage here is not known, since no doses were judged."
    if SENSE in seen.sees:
        return f"It sees damage up to dose {number(seen.dose)}."
    return f"It is blind up to dose {number(seen.dose)}."


def _sweep(record: RunRecord) -> Sweep | None:
    """The doses that were read before the first harvest."""
    return next((row.sweep for row in record.rounds if row.sweep), None)
