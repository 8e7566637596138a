"""Check 3: did the adapter learn behaviour that is both different and coherent?

In: a round's record with its heal's log, the student before it, the heal's settings, and how many
free answers narrate. Retain counts net of the unsteered control: what training on any text does is
not kept trait. A ratio is read only where steering had raised the trait and the healed state
is finite. Heal diagnostics (cross-entropy, divergence, pressure) name the cause; retain and
coherence say the result. A cause goes before the result it explains, and a good result goes
before a diagnostic that did not spoil it, which is said beside it.
"""

import math
import statistics
from collections.abc import Sequence

from steerheal.checks.rules import (
    BACK,
    BROKEN,
    Check,
    Evidence,
    Rule,
    backwards,
    coherent,
    known,
    over,
    right_way,
)
from steerheal.config import HealSettings
from steerheal.filter.rules import narrates
from steerheal.measure import sight
from steerheal.measure.readings.table import played
from steerheal.numbers import written
from steerheal.personas import Axis, Persona
from steerheal.records import HealLog, HealStep, Reading, RoundRecord, Scores, Summary

RETAINED = 0.5
"""Share of the steered gain of trait from which it counts as kept."""
GONE = 0.2
"""Share below which it counts as lost; between the two no outcome is claimed."""
BOUGHT_BACK = 0.5
"""Share of the lost answer mass from which recovered counts as large."""
FALLS = 0.02
"""Nats per token that a cross-entropy must change to have moved: a heal that learns gains tenths
of a nat (0.3 in the demo), and the same completions are compared."""
MUCH_STRONGER = 3.0
"""Ratio of the barrier's gradient to the cross-entropy's that is ≫ 1: with it the steps point
where the barrier does, within 20 degrees."""
PINNED, TINY = 0.25, 0.01
"""How far above τ D may stay to count as pinned there: a share of τ, and nats where τ is 0."""
OFTEN = 0.25
"""Share of steps in which the barrier must have fired for D to be pinned from above; held at τ, it
fires in every third or so."""
MILDER = ("under-regularised", "undone", "barrier never fired")
"""What a heal that trained badly, or taught to narrate, explains."""
NARRATES = 0.2
"""Share of free answers, above the base's own, that claim the trait in the first person."""


class Healing(Evidence):
    """What check 3 looks at."""

    foundation: str
    sign: int
    target: Reading
    """Change of the target foundation's nats from base, healed."""
    gain: float
    """Steered change of the trait in this round."""
    unit: str
    """Of the trait."""
    retain: Reading
    """Net of the unsteered control, where one was read."""
    gross: Reading | None = None
    """What it is without the control; None where none was read."""
    recovered: Reading
    coherence: float
    coherence_high: float = math.nan
    """The upper end of its interval, where it is a share of few answers."""
    coherence_steered: float
    read_by: str = ""
    """What coherence is read by, where that is not the canary."""
    mass_change: Reading
    """Change of the answer mass from base, healed."""
    perplexity: float
    """Of free answers, over the base's."""
    ce_fall: float
    """Fall of the training cross-entropy, nats per token."""
    held_fall: float
    """Fall of the held-out one from before training to the last epoch."""
    held_rise: float
    """Its rise from its lowest to the last epoch."""
    divergence: float
    """Median D over the later half of the steps, nats."""
    highest: float
    """Largest D of all steps."""
    tau: float
    fired: float
    """Share of the steps with D above τ; NaN without a barrier."""
    pressure: float
    """Median ratio of the barrier's gradient to the cross-entropy's where the barrier fired."""
    barrier: bool
    """Whether the heal has one."""
    narrating: float
    narrating_base: float
    rejected: str = ""
    """Why the heal was not folded."""
    lacks: str = ""
    """Why there is no healed state."""

    @property
    def retained(self) -> bool:
        """Whether a risen trait is mostly kept."""
        return self.gain > 0 and self.retain.value >= RETAINED

    @property
    def alone(self) -> bool:
        """Whether a risen trait is kept, and the unsteered control has it too."""
        kept = self.gross is not None and self.gross.value >= RETAINED
        return self.gain > 0 and kept and self.retain.value < GONE

    @property
    def undone(self) -> bool:
        """Whether a risen trait is gone, and not only what training alone does of it."""
        gone = self.gross is None or self.gross.value < RETAINED
        return self.gain > 0 and gone and self.retain.value < GONE

    @property
    def back(self) -> bool:
        """Whether coherence is the base's."""
        best = self.coherence_high if known(self.coherence_high) else self.coherence
        return coherent(best, self.perplexity) and best >= BACK

    @property
    def lost(self) -> bool:
        """Whether coherence is known to be missing."""
        return (self.coherence < BACK and self.mass_change.high < 0) or self.perplexity > BROKEN

    @property
    def bought_back(self) -> bool:
        """Whether what steering broke is whole again; all of it, where nothing was broken."""
        if known(self.recovered.value):
            return self.recovered.value >= BOUGHT_BACK
        return self.back

    @property
    def pressed(self) -> bool:
        """Whether the barrier outweighs the cross-entropy.

        Held at τ it no longer does: there it fires in some steps only, and pulls back little.
        """
        pinned = self.divergence <= (1 + PINNED) * self.tau + TINY and self.fired >= OFTEN
        return self.pressure >= MUCH_STRONGER or pinned

    @property
    def loose(self) -> bool:
        """Whether there is no barrier, or it is known not to outweigh the cross-entropy."""
        return not self.barrier or (known(self.fired) and not self.pressed)

    @property
    def unlearned(self) -> bool:
        """Whether both cross-entropies rose."""
        return self.ce_fall <= -FALLS and self.held_fall <= -FALLS

    @property
    def loosen(self) -> str:
        """What to do with a barrier that takes too much; nothing where there is none."""
        return "; lower --heal.lam or raise --heal.tau" if self.barrier else ""

    @property
    def tighten(self) -> str:
        """What to do with a barrier that takes too little."""
        return "; raise --heal.lam or lower --heal.tau" if self.barrier else ""

    @property
    def result(self) -> str:
        """Retain, recovered and coherence in one phrase."""
        why = f" ({self.retain.reason})" if self.retain.reason else ""
        net = " net of the unsteered control ({e.gross} without it)" if self.gross else ""
        by = f" ({self.read_by})" if self.read_by else ""
        rest = f", recovered {{e.recovered}}, coherence{by} {{e.coherence_steered}} → "
        rest += "{e.coherence} of base"
        return (
            written("retain {e.retain}" + net, self)
            + why
            + written(rest + ", perplexity ×{e.perplexity}", self)
        )

    @property
    def training(self) -> str:
        """What the losses did."""
        barrier = ", D ended at {e.divergence}, barrier over CE gradient {e.pressure}"
        return written(
            "training CE fell by {e.ce_fall}, held-out CE by {e.held_fall} nats/token"
            + (barrier if self.barrier else ""),
            self,
        )

    @property
    def caveat(self) -> str:
        """The target foundation, when it moved against the axis."""
        return backwards(self.foundation, self.target, self.sign)

    @property
    def plainly(self) -> str:
        """Result and training, or why there is no result."""
        wrong = written("steering did not raise the trait ({e.gain:+} {e.unit})", self)
        trained = self.training if known(self.ce_fall) else ""
        parts = (self.lacks or self.result, wrong if self.gain <= 0 else "", trained)
        return "; ".join(part for part in parts if part)


def evidence(
    record: RoundRecord,
    before: Summary,
    settings: HealSettings,
    axis: Axis,
    *,
    base: Summary,
    narration: tuple[float, float] = (math.nan, math.nan),
) -> Healing:
    """Check 3's evidence.

    Args:
        record: The round, with its heal; without a healed reading only the heal is judged.
        before: The student at the round's start.
        settings: Barrier and τ.
        axis: The target foundation.
        base: What perplexity is held against.
        narration: Shares of free answers that narrate, healed and base.
    """
    healed, steered, log = record.healed, record.steered, record.heal
    control = record.control if record.control and record.control.read else None
    lost = Reading.unknown("the round has no healed reading")
    logs = log or HealLog(
        steps=(), held_out=(), trained_on=0, held_out_completions=0, lam=math.nan,
        outcome="rejected", reason="no heal",
    )  # fmt: skip
    if logs.outcome == "rejected":
        # What a broken training did explains nothing: its own reason is all there is to say.
        logs = logs.model_copy(update={"steps": (), "held_out": ()})
    fit, barrier = _losses(logs), settings.barred and logs.lam > 0
    divergences = [step.divergence for step in logs.steps if known(step.divergence)]
    return Healing(
        foundation=axis.foundation,
        sign=axis.sign,
        target=healed.delta_nats.get(axis.foundation, lost) if healed else lost,
        gain=steered.trait.value - before.trait.value if steered else math.nan,
        unit=played(before, "trait").difference_unit,
        retain=(control.retain if control else record.retain) or lost,
        gross=record.retain if control else None,
        recovered=record.recovered or lost,
        coherence=healed.coherence if healed else math.nan,
        coherence_high=healed.coherence_high if healed else math.nan,
        coherence_steered=steered.coherence if steered else math.nan,
        read_by=sight.read_by(healed) if healed else "",
        mass_change=healed.mass_change if healed else lost,
        perplexity=over(healed.perplexity, base.perplexity) if healed else math.nan,
        ce_fall=_fall(fit.steps),
        held_fall=fit.held_out[0] - fit.held_out[-1] if len(fit.held_out) > 1 else math.nan,
        held_rise=fit.held_out[-1] - min(fit.held_out) if fit.held_out else math.nan,
        divergence=_median(divergences[len(divergences) // 2 :]),
        highest=max(divergences, default=math.nan),
        tau=settings.tau,
        fired=logs.barrier_fired if barrier and divergences else math.nan,
        pressure=_median([s.pressure for s in logs.steps if s.barrier > 0 and known(s.pressure)]),
        barrier=barrier,
        narrating=narration[0],
        narrating_base=narration[1],
        rejected=log.reason if log and log.outcome == "rejected" else "",
        lacks="" if healed else f"there is no healed state: {logs.reason or 'not evaluated'}",
    )


def narration(scores: Scores, persona: Persona) -> float:
    """Share of a state's free answers that claim the trait in the first person."""
    said = [narrates(row.completion.text, persona) for row in scores.persona]
    return sum(said) / len(said) if said else math.nan


def _losses(log: HealLog) -> HealLog:
    """The log, without the fits of answers that were rewarded: they need not fall."""
    return log.model_copy(update={"steps": (), "held_out": ()}) if log.groups else log


def _fall(steps: Sequence[HealStep]) -> float:
    """First epoch's mean cross-entropy less the last's; quarters of a single epoch."""
    epochs = sorted({step.epoch for step in steps})
    if len(epochs) > 1:
        first, last = (
            [step.ce for step in steps if step.epoch == epoch] for epoch in (epochs[0], epochs[-1])
        )
    else:
        size = len(steps) // 4
        if not size:
            return math.nan
        first, last = [step.ce for step in steps[:size]], [step.ce for step in steps[-size:]]
    return statistics.fmean(first) - statistics.fmean(last)


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan


CHECK: Check[Healing] = Check(
    "check 3",
    (
        Rule(
            "rejected",
            lambda e: bool(e.rejected),
            "The heal is not folded: {e.rejected}.",
            "Lower --heal.lr, or --heal.lam where the barrier is what grew; what was harvested is "
            "there already, so that only the heal is made anew.",
        ),
        Rule(
            "healed",
            lambda e: e.retained and e.back,
            "The trait stays without the hook and coherence is the base's: {e.result}.",
            "Read lower gates (evaluate --gate) and, with a barrier, a run with heal.barrier none "
            "before crediting anything but the data; then go on with the next round.",
            tone="good",
            over=("barrier never fired", "overfit", "unlearned"),
        ),
        Rule(
            "undone",
            lambda e: e.undone and e.bought_back,
            "Coherence is back and the trait went with it: {e.result}; {e.training}.",
            "Train longer (--heal.epochs) on text of a higher dose (a lower --dose.coherence, or a "
            "higher --dose.start){e.loosen}.",
            over=("barrier never fired",),
        ),
        Rule(
            "training alone",
            lambda e: e.alone,
            "The same heal on unsteered text moves the trait as well, so that little of it is the "
            "vector's: {e.result}.",
            "Teach with text that the vector changes more: a lower --dose.coherence, a higher "
            "--dose.start, or blocks and a dose that steerheal scan finds.",
            over=("barrier never fired",),
        ),
        Rule(
            "over-regularised",
            lambda e: e.pressed and e.ce_fall < FALLS,
            "The barrier holds the adapter in place: {e.training}, with τ {e.tau} and the barrier "
            "firing in {e.fired:%} of the steps; {e.result}.",
            "Lower --heal.lam, raise --heal.tau, or take --heal.reference prev.",
            over=("undone", "unlearned"),
        ),
        Rule(
            "under-regularised",
            lambda e: e.retained and e.lost,
            "The trait stays but coherence falls with it: {e.result}.",
            "Lower --gate, steer less (a higher --dose.coherence, or a lower --dose.start), or "
            "anchor the heal off the trait (--heal.anchor 3){e.tighten}.",
        ),
        Rule(
            "barrier never fired",
            lambda e: e.fired == 0,
            "D never reached τ: at most {e.highest} against {e.tau}, so that the barrier did "
            "nothing and the heal equals one without a barrier.",
            "Set --heal.tau below {e.highest}, or take --heal.aggregate max, which outliers move.",
            over=("under-regularised",),
        ),
        Rule(
            "overfit",
            lambda e: e.held_rise >= FALLS and e.ce_fall >= FALLS,
            "Held-out CE rose by {e.held_rise} from its lowest while training CE fell by "
            "{e.ce_fall} nats/token; {e.result}.",
            "Lower --heal.epochs, --heal.rank or --heal.lr, or want more completions "
            "(--dose.want).",
            over=MILDER,
        ),
        Rule(
            "unlearned",
            lambda e: e.unlearned,
            "Training raised the loss instead of lowering it: {e.training}; {e.result}.",
            "Lower --heal.lr.",
            over=MILDER,
        ),
        Rule(
            "nothing to learn",
            lambda e: e.ce_fall < FALLS and e.held_fall < FALLS and e.loose and not e.unlearned,
            "Neither loss falls: {e.training}; the kept text is what the student writes anyway.",
            "Keep text of higher doses (a lower --dose.coherence, a higher --dose.start, a higher "
            "--filter.tail-perplexity), or raise --heal.lr and --heal.epochs if they are far below "
            "the defaults.",
            over=("undone", "barrier never fired"),
        ),
        Rule(
            "narrates",
            lambda e: (
                e.narrating - e.narrating_base >= NARRATES
                and known(e.target.low)
                and not right_way(e.target, e.sign)
            ),
            "{e.narrating:%} of the free answers claim the trait in the first person (base "
            "{e.narrating_base:%}), while {e.foundation} reads {e.target:+} nats.",
            "Tighten the filter's narration rules, write the persona's poles as acts, and take "
            "training prompts that ask for acts and not for views.",
            over=("healed", *MILDER, "overfit", "unlearned"),
        ),
    ),
)
