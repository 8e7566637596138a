"""Check 1's sweep: a student under several doses of its vector, and a random one at equal KL."""

from collections.abc import Callable, Sequence

from steerheal import streams
from steerheal.config import CheckSettings, MeasureSettings, SamplingSettings
from steerheal.measure import sweep
from steerheal.measure.even import even_shares
from steerheal.measure.readings.table import Rules
from steerheal.models.model import ChatModel
from steerheal.personas import Persona
from steerheal.records import Completion, Scores, Sweep
from steerheal.state.values import State
from steerheal.state.vector import SteeringVector
from steerheal.steer.equal import equal_kl
from steerheal.streams import stream


def swept(
    chat: ChatModel,
    student: State,
    vector: SteeringVector,
    doses: Sequence[float],
    zero: Scores,
    *,
    persona: Persona,
    check: CheckSettings,
    measure: MeasureSettings,
    sampling: SamplingSettings,
    seed: int,
    rules: Rules | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Sweep:
    """The doses, each with its even share, and a control that costs the KL of the largest.

    Args:
        chat: The model, in no state.
        student: What is steered.
        vector: The round's.
        doses: Above 0, in any order.
        zero: The student's evaluation: dose 0 takes its vignettes and canary from it, and the
            control's KL is matched on its answers.
        persona: Axis, poles and prompts.
        check: How much is asked, and whether there is a control.
        measure: Whose instrument reads the vignettes.
        sampling: Of the free answers.
        seed: The run's: the answers have a stream of it, and the control is drawn by it.
        rules: What tells coherent answers; without it that reading is unknown.
        progress: Called with the number of rows done, as `rows` counts them.
    """
    steered = student.steered(vector, max(doses))
    draws = stream(seed, streams.SWEEP)
    ask = sweep.asked(persona, check, measure, sampling, draws, rules=rules)
    texts = [row.completion for row in zero.persona[: check.base_texts]]
    control = matched(chat, student, steered, texts, seed) if check.control else None
    read = sweep.sweep(chat, steered, doses, ask, control=control, known=zero, progress=progress)
    shares = dict(zip(doses, even_shares(chat, student, steered, doses, texts), strict=True))
    points = [
        point if point.control else point.model_copy(update={"even": shares[point.dose]})
        for point in read.points
    ]
    return read.model_copy(update={"points": tuple(points)})


def matched(
    chat: ChatModel, student: State, steered: State, texts: Sequence[Completion], seed: int
) -> tuple[float, State] | None:
    """The dose whose KL a random vector equals, and the student under it.

    None where no length of it does, or where the dose has no finite KL to match.
    """
    found = equal_kl(chat, student, steered, texts, seed=seed)
    return None if found.vector is None else (steered.dose, student.steered(found.vector, 1.0))


def rows(
    doses: Sequence[float],
    persona: Persona,
    check: CheckSettings,
    measure: MeasureSettings,
    sampling: SamplingSettings,
) -> int:
    """Rows that `swept` reports as progress at most."""
    levels = 1 + len(set(doses)) + check.control
    return levels * sweep.asked(persona, check, measure, sampling, 0).rows
