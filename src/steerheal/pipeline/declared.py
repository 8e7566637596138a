"""The stages of a run: what each is made by, what of its inputs counts, and what it leaves."""

from pathlib import Path
from typing import Any

from steerheal.config import (
    DoseSettings,
    HealSettings,
    MeasureSettings,
    SamplingSettings,
    VectorSettings,
)
from steerheal.filter.calibrate import calibrate
from steerheal.heal.round import heal
from steerheal.heal.train import Healed
from steerheal.measure import instruments
from steerheal.measure.auto import Tried, tried
from steerheal.measure.evaluate import answer_test, evaluate, prompted
from steerheal.measure.judge import judged
from steerheal.measure.readings.judged import Judgements
from steerheal.measure.show import show
from steerheal.personas import Persona
from steerheal.pipeline.harvest import harvested
from steerheal.pipeline.knee import curve
from steerheal.pipeline.stage import Artifact, Stage, record
from steerheal.pipeline.unsteered import unsteered
from steerheal.records import (
    Calibrated,
    Curve,
    HealLog,
    Internalisation,
    Scores,
    Shown,
    Sweep,
    Unsteered,
)
from steerheal.state.adapter import Adapter
from steerheal.state.vector import SteeringVector
from steerheal.steer.internalise import internalised
from steerheal.steer.sweep import swept
from steerheal.steer.vector import extract
from steerheal.store import TEST, read_harvest_folder, read_record, write_harvest, write_record
from steerheal.tables import AGGREGATES, BARRIERS, ENGINES, INSTRUMENTS, METHODS, OBJECTIVES

ADAPTER, HEAL, VECTOR_FILE = "adapter", "heal.json", "vector.safetensors"
CONTROL = "control"
"""The unsteered control's role, and its folder in a round's."""
BASE = -1
"""The base's place among the rounds, which count from 0."""
STATES = ("state.formulas", "state.values", *ENGINES.modules)
"""What every state is made by and written by, whichever it is."""


def _poles(persona: Persona) -> object:
    return persona.positive, persona.negative, persona.neutral


def _taught(persona: Persona) -> object:
    return persona.prompts.train, persona.positive, persona.negative


def _tested(persona: Persona) -> object:
    return persona.prompts.test, persona.positive, persona.negative


def _asked(persona: Persona) -> object:
    return persona.prompts.evaluate, persona.positive, persona.negative


def _curved(settings: DoseSettings) -> object:
    return settings.coherence, settings.curve, settings.curve_prompts, settings.curve_tokens


def _read(settings: MeasureSettings) -> object:
    """An evaluation's settings, and what they take from files and from outside the package."""
    return settings, instruments.texts(settings), INSTRUMENTS.code_of(settings.instrument)


def _extracted(settings: VectorSettings) -> object:
    return settings, METHODS.code_of(settings.method)


def _sampled(settings: SamplingSettings | None) -> object:
    return settings and (settings, ENGINES.code_of(settings.engine))


WRITTEN = {"sampling": _sampled}
"""What counts wherever text is written."""


def _fitted(settings: HealSettings) -> object:
    return settings, [table.code_of(name) for table, name in settings.named()]


def _heal_in(place: str) -> Artifact[Healed]:
    """A heal in a folder of the round's."""

    def save(folder: Path, healed: Healed) -> None:
        healed.adapter.save(folder / place / ADAPTER)
        write_record(folder / place / HEAL, healed.log)

    def load(folder: Path) -> Healed:
        log = read_record(folder / place / HEAL, HealLog)
        return Healed(Adapter.load(folder / place / ADAPTER), log)

    return Artifact(save, load)


QUALIFY = Stage(
    "qualify", tried, record("instrument.json", Tried), by=("measure.auto", *INSTRUMENTS.modules),
    counts={"settings": _read},
)  # fmt: skip
EVALUATE = Stage(
    "evaluate", evaluate, record("scores.json", Scores),
    by=("measure.evaluate", "filter.coherent", *INSTRUMENTS.modules, *STATES),
    counts={**WRITTEN, "settings": _read},
)  # fmt: skip
PROMPTED = Stage(
    "prompted", prompted, record("prompted.json", Scores),
    by=("measure.evaluate", *INSTRUMENTS.modules, *STATES),
    counts={**WRITTEN, "persona": _asked, "settings": _read},
)  # fmt: skip
TESTED = Stage(
    "test", answer_test, record(TEST, Scores), by=("measure.evaluate", *STATES),
    counts={
        **WRITTEN,
        "persona": _tested,
        "settings": lambda read: (read.instrument, read.prompts, read.tokens),
    },
)  # fmt: skip
SHOW = Stage(
    "show", show, record("shown.json", Shown), by=("measure.show", *STATES),
    counts=WRITTEN,
)  # fmt: skip
VECTOR = Stage(
    "vector",
    extract,
    Artifact[SteeringVector](
        lambda folder, vector: vector.save(folder / VECTOR_FILE),
        lambda folder: SteeringVector.load(folder / VECTOR_FILE),
    ),
    by=("steer.vector", *METHODS.modules, *STATES),
    counts={"persona": _poles, "settings": _extracted},
)
SWEEP = Stage(
    "sweep", swept, record("sweep.json", Sweep),
    by=("steer.sweep", "filter.coherent", *INSTRUMENTS.modules, *STATES),
    counts={**WRITTEN, "measure": _read},
)  # fmt: skip
CALIBRATE = Stage(
    "calibrate", calibrate, record("calibration.json", Calibrated),
    by=("filter.calibrate", *ENGINES.modules),
    counts={**WRITTEN, "persona": _taught},
)  # fmt: skip
CURVE = Stage(
    "curve", curve, record("curve.json", Curve), by=("pipeline.knee", *STATES),
    counts={**WRITTEN, "persona": _taught, "dose": _curved},
)  # fmt: skip
HARVEST = Stage(
    "harvest", harvested, Artifact(write_harvest, read_harvest_folder),
    by=("pipeline.harvest", *STATES), counts={**WRITTEN, "persona": _taught},
)  # fmt: skip
UNSTEERED = Stage(
    "unsteered", unsteered, record(f"{CONTROL}/texts.json", Unsteered),
    by=("pipeline.unsteered", *STATES), counts={**WRITTEN, "persona": _taught},
)  # fmt: skip
HEALED = Stage(
    "heal", heal, _heal_in(""),
    by=(
        "heal.round", "filter.reward", *OBJECTIVES.modules, *BARRIERS.modules, *AGGREGATES.modules,
        *STATES,
    ),
    counts={**WRITTEN, "settings": _fitted},
)  # fmt: skip
HEALED_CONTROL = HEALED.called(CONTROL, _heal_in(CONTROL))
INTERNALISE = Stage(
    "internalise", internalised, record("internalised.json", Internalisation),
    by=("steer.internalise", *STATES),
)  # fmt: skip
JUDGED = Stage("judged", judged, record("judged.json", Judgements), by=("measure.judge",))
STAGES: tuple[Stage[..., Any], ...] = (
    QUALIFY, EVALUATE, PROMPTED, TESTED, SHOW, VECTOR, CURVE, SWEEP, CALIBRATE, HARVEST, HEALED,
    INTERNALISE, UNSTEERED, JUDGED,
)  # fmt: skip
