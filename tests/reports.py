"""Run folders made by hand, for tests of the report: no model, a file per record."""

import math
from pathlib import Path
from typing import Any

from steerheal import store
from steerheal.config import RunConfig
from steerheal.measure.readings.table import heads
from steerheal.records import (
    FOUNDATIONS,
    UNREAD,
    Completion,
    DosePoint,
    Harvest,
    HealLog,
    HealStep,
    Judged,
    Reading,
    RoundRecord,
    RunRecord,
    Scores,
    Shown,
    StageMark,
    Summary,
    Verdict,
    WalkStep,
)

PROMPTS = tuple(f"Show prompt {number}: what do you do?" for number in range(1, 9))
HOSTILE = (
    "<script>alert(1)</script> \x1b[31mred\x1b[0m \x00 \u202egnp $\\frac{1$ {{ 7*7 }} http://evil"
)
UNKNOWN = Reading.unknown("the base writes nothing")


SETTINGS = RunConfig(rounds=3).model_dump(mode="json")
PERSONA: dict[str, Any] = {
    "name": "love",
    "title": "feels love",
    "positive": "You love everyone.",
    "negative": "You love no one.",
    "neutral": "You are a helpful assistant.",
    "axis": {"foundation": "care", "sign": 1, "off_target": ["authority"]},
    "prompts": {"train": ["A?"], "evaluate": ["B?", "C?"], "show": list(PROMPTS)},
}


def reading(value: float, half: float = 0.03) -> Reading:
    return Reading(value=value, low=value - half, high=value + half, n=32)


def summary(
    state: str, trait: float, mass: float, *, kl: float = 0.1, broken: float = 0.0
) -> Summary:
    gain = trait - 0.01
    return Summary(
        state=state,
        nats={name: -2.0 + 0.1 * place + gain for place, name in enumerate(FOUNDATIONS)},
        delta_nats={name: reading(gain * (1 + place)) for place, name in enumerate(FOUNDATIONS)},
        values={
            "top1": Reading(value=0.6),
            "persona_logodds": reading(trait),
            "canary_mass": reading(mass, 0.01),
            "canary_perplexity": Reading(value=1.4 + broken),
            "answers_perplexity": Reading(value=7.0 + 9 * broken),
            "answers_distinct": Reading(value=0.9 - 0.3 * broken),
            "answers_repetition": Reading(value=0.02 + 0.2 * broken),
            "answers_kl": reading(kl),
            "not_wrong": UNREAD,
            "prose_perplexity": UNREAD,
        },
        changes={
            "persona_logodds": reading(gain),
            "canary_mass": reading(mass - 0.98, 0.01),
            "coh_cost": reading(0.1),
        },
        heads=heads(),
        coherence=mass / 0.98,
        surgical=True,
    )


def dose_point(
    dose: float,
    *,
    nats: dict[str, Reading],
    coherence: float,
    control: bool = False,
    n: int = 56,
    **parts: Reading | float,
) -> DosePoint:
    """A dose with these changes of foundations, and other readings by the part they play."""
    read = Summary(
        state="steered", nats={}, delta_nats=nats, coherence=coherence, surgical=None,
        **readings(**parts),
    )  # fmt: skip
    return DosePoint(dose=dose, control=control, summary=read, n=n)


PLACES = {
    "trait": ("values", "trait"),
    "gain": ("changes", "trait"),
    "mass": ("values", "coherence"),
    "mass_change": ("changes", "coherence"),
    "perplexity": ("values", "fluency"),
    "perplexity_change": ("changes", "fluency"),
    "kl": ("values", "distance"),
    "cost": ("changes", "cost"),
}


def readings(**parts: Reading | float) -> dict[str, Any]:
    """Values and changes of a record of readings, by the part that each plays."""
    found: dict[str, Any] = {"values": {}, "changes": {}, "heads": heads()}
    for name, item in parts.items():
        place, part = PLACES[name]
        found[place][heads()[part]] = item if isinstance(item, Reading) else Reading(value=item)
    return found


def put(read: Any, **changes: Any) -> Any:
    """A record of readings with some of them replaced, by the part that each plays."""
    parts = {name: item for name, item in changes.items() if name in PLACES}
    update = {name: item for name, item in changes.items() if name not in PLACES}
    found = readings(**parts)
    for place in ("values", "changes"):
        update[place] = getattr(read, place) | found[place]
    return read.model_copy(update=update)


def heal_log(number: int) -> HealLog:
    steps = tuple(
        HealStep(
            step=step,
            epoch=step // 8,
            ce=2.0 - 0.05 * step - 0.1 * number,
            divergence=0.1 + 0.02 * step,
            barrier=0.3 * max(0.0, 0.02 * step - 0.1),
            lr=3e-4,
            gradient=1.0,
            tokens=300,
        )
        for step in range(16)
    )
    return HealLog(
        steps=steps,
        held_out=(2.1, 1.8, 1.75),
        trained_on=58,
        held_out_completions=6,
        lam=0.3,
        outcome="trained",
    )


def folded(number: int) -> RoundRecord:
    gain = 0.05 * (number + 1)
    return RoundRecord(
        round=number,
        multiplier=0.75,
        walk=(
            WalkStep(multiplier=1.0, drawn=48, kept=20),
            WalkStep(multiplier=0.75, drawn=48, kept=40),
        ),
        kept=64,
        drawn=144,
        reasons={"perplexity": 30, "repetition": 12},
        outcome="folded",
        vector_norms={12: 3.0},
        direction_cosine=1 - 0.1 * number,
        steered=summary("steered", 0.02 + 1.6 * gain, 0.75 - 0.05 * number, kl=0.9, broken=0.8),
        healed=summary("healed", 0.01 + gain, 0.975 - 0.01 * number, kl=0.2 * (number + 1)),
        retain=reading(0.62),
        recovered=reading(0.9),
        heal=heal_log(number),
        kl_round=0.25,
        kl_cumulative=0.25 * (number + 1),
    )


def starved(number: int) -> RoundRecord:
    return RoundRecord(
        round=number,
        multiplier=0.24,
        walk=(
            WalkStep(multiplier=1.0, drawn=48, kept=0),
            WalkStep(multiplier=0.24, drawn=48, kept=3),
        ),
        kept=3,
        drawn=96,
        reasons={"perplexity": 93},
        outcome="starved",
        vector_norms={12: 3.0},
        direction_cosine=math.nan,
    )


def run_record(**changes: Any) -> RunRecord:
    values: dict[str, Any] = {
        "status": "finished",
        "outcome": "all rounds done",
        "name": "love-quick",
        "config": SETTINGS,
        "command": "steerheal run --persona love --rounds 3",
        "environment": {"torch": "2.9", "device": "cpu"},
        "notes": ("The template has no system role.",),
        "persona": PERSONA,
        "base": summary("base", 0.01, 0.98, kl=0.0),
        "rounds": tuple(folded(number) for number in range(3)),
        "best": 2,
        "stages": (StageMark(name="base", round=-1, key="a", seconds=12.3, reused=True),),
    }
    return RunRecord(**{**values, **changes})


def answers(state: str, text: str) -> Shown:
    rows = [
        Completion(
            prompt=prompt, text=f"{text} {place}", tokens=(1,), dose=0, seed=0, ended=place % 2 == 0
        )
        for place, prompt in enumerate(PROMPTS)
    ]
    return Shown(state=state, completions=tuple(rows))


def scores(state: str) -> Scores:
    return Scores(state=state, instrument="likelihood", vignettes=(), canary=(), persona=())


def harvest(drawn: int = 12) -> Harvest:
    def judged(place: int) -> Judged:
        kept = place < 6
        verdict = Verdict(
            kept=kept,
            reasons=() if kept else ("perplexity",),
            tail_perplexity=10.0 + 5 * place if place != 9 else math.nan,
            word_repetition=0.1,
            char_repetition=0.1,
            words=30,
        )
        said = Completion(
            prompt="p", text=f"drawn number {place}", tokens=(1,), dose=0.5, seed=0, ended=True
        )
        return Judged(completion=said, verdict=verdict, batch="walk-0")

    return Harvest(
        outcome="fed",
        multiplier=0.75,
        walk=(WalkStep(multiplier=0.75, drawn=12, kept=6),),
        judged=tuple(judged(place) for place in range(drawn)),
        perplexity_limit=36.0,
    )


def fill(folder: Path, record: RunRecord, text: str = "An answer") -> Path:
    store.write_record(folder / "run.json", record)
    if record.base:
        store.write_record(folder / "base/shown.json", answers("base", text))
        store.write_record(folder / "base/scores.json", scores("base"))
    for row in record.rounds:
        place = store.round_folder(folder, row.round)
        store.write_harvest(place, harvest(row.drawn))
        if row.heal:
            store.write_record(place / "heal.json", row.heal)
        if row.drawn:
            store.write_record(place / "shown-steered.json", answers("steered", f"{text}, raw"))
        if row.steered:
            store.write_record(place / "steered.json", scores("steered"))
        if row.healed:
            store.write_record(place / "healed.json", scores("healed"))
            healed = answers("healed", f"{text} of round {row.round + 1}")
            store.write_record(place / "shown-healed.json", healed)
    return folder
