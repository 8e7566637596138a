"""Check 1: does steering change the target while the model stays coherent?

In: a sweep (or the one steered reading as a sweep of one dose), the base's qualification and the
persona's axis. The trait has two readings. The target foundation's nats say whether the vignettes
see it; the persona's log-odds say whether free answers read like the persona's text, which serves
where no foundation does. Either of them moving as meant at a coherent dose is `works`, unless the
other one moves the wrong way at a coherent dose: that is `wrong sign`, with both numbers said.
Answers that sound like the persona while its foundation falls show a manner and not the trait that
the axis claims, and a user must decide whether the axis or the vector is wrong. One reading that
moves both ways at different doses is ambiguous.

Several doses are several chances to be deceived: the trait's intervals are as wide as it takes to
hold at all doses together (Bonferroni). With no effect a run then sees `works` in at most one case
of twenty, whatever the number of doses. What speaks against a dose, off-targets and random vectors,
is held to its own interval.

From the second round on the student already carries the trait: what it had at the round's start is
taken off every reading, as exact.
"""

import math

from steerheal.checks.moves import LOGODDS, UNITS, Move, move_of
from steerheal.checks.rules import (
    BACK,
    Check,
    Evidence,
    Rule,
    incoherent,
    known,
    named,
    right_way,
    wrong_way,
)
from steerheal.measure.qualify import LEAST_MASS, Qualification
from steerheal.measure.stats import widened
from steerheal.numbers import written
from steerheal.personas import Axis
from steerheal.records import Summary, Sweep

FLAT_PERPLEXITY = 1.1
"""Perplexity over the base's up to which a dose is not felt: on the embedded model half a dose
reads 1.01 and a whole one 1.5."""
AS_MUCH = 1.0
"""An off-target, or a random vector, that moves by this share of the target counts as equal."""
EQUAL_KL = 1.5
"""Largest ratio between two KLs that still compares vectors at the same strength: within it the
effect, about the square root of the KL, differs by less than a quarter."""


class Steering(Evidence):
    """What check 1 looks at."""

    foundation: str
    sign: int
    fit: bool
    """Whether the instrument can see the axis on the base."""
    reasons: str
    """Why not."""
    answer_mass: float
    """The base's, at the instrument's slot or the canary's."""
    doses: tuple[Move, ...]
    """From the lowest dose up."""
    controls: tuple[Move, ...]

    def signs(self) -> dict[str, int]:
        """Which way each reading of the trait should move; log-odds follow the poles."""
        return {self.foundation: self.sign, LOGODDS: 1}

    def right(self, move: Move) -> set[str]:
        """Readings that moved as meant."""
        return {name for name, sign in self.signs().items() if right_way(move.trait[name], sign)}

    def wrong(self, move: Move) -> set[str]:
        """Readings that moved the other way."""
        return {name for name, sign in self.signs().items() if wrong_way(move.trait[name], sign)}

    @property
    def held(self) -> list[Move]:
        """Coherent doses."""
        return [move for move in self.doses if move.coherent]

    @property
    def first(self) -> Move:
        """The lowest dose."""
        return self.doses[0]

    @property
    def last(self) -> Move:
        """The highest dose."""
        return self.doses[-1]

    @property
    def calm(self) -> Move:
        """The highest coherent dose, or the lowest when none is."""
        return (self.held or [self.first])[-1]

    def strays(self, move: Move) -> list[str]:
        """What speaks against the dose being about the trait, in words."""
        target = move.trait[self.foundation]
        said = [
            f"off-target {named({name: reading}, UNITS)}"
            for name, reading in move.off.items()
            if reading.moved and abs(reading.value) >= AS_MUCH * abs(target.value)
        ]
        # A dose without a random vector of its own is no better than one that failed the test.
        tested = [move] if self.rival(move) else self.moved
        return said + [text for other in tested for text in self._matched(other)][:1]

    def _matched(self, move: Move) -> list[str]:
        """The random vector, when it moves all that moved as meant by as much."""
        rival, right = self.rival(move), self.right(move)
        if rival is None:
            return []
        equal = {
            name: rival.trait[name]
            for name in sorted(right)
            if rival.trait[name].moved
            and abs(rival.trait[name].value) >= AS_MUCH * abs(move.trait[name].value)
        }
        # One reading that the random vector leaves alone is enough to be about the trait.
        said = f"a random vector at equal KL to dose {move.dose:.3g} {named(equal, UNITS)}"
        return [said] if right and len(equal) == len(right) else []

    def rival(self, move: Move) -> Move | None:
        """The random vector made for this dose, or one of about its KL; None without either."""
        made = [other for other in self.controls if other.dose == move.dose]
        near = [
            (max(move.kl, other.kl) / min(move.kl, other.kl), place)
            for place, other in enumerate(self.controls)
            if move.kl > 0 and other.kl > 0
        ]
        ratio, place = min(near, default=(math.inf, 0))
        if made:
            return made[0]
        return self.controls[place] if ratio <= EQUAL_KL else None

    @property
    def moved(self) -> list[Move]:
        """Coherent doses at which a reading moved as meant."""
        return [move for move in self.held if self.right(move)]

    @property
    def precise(self) -> list[Move]:
        """Those of them that nothing speaks against."""
        return [move for move in self.moved if not self.strays(move)]

    @property
    def working(self) -> Move:
        """The strongest precise dose."""
        return self.precise[-1]

    @property
    def specific(self) -> str:
        """What random vector and off-targets add to a working dose."""
        unread = [name for name, item in self.working.off.items() if not known(item.value)]
        said = [f"off-target {name} was not read" for name in unread]
        if self.rival(self.working) is None:
            return "; ".join(["no random vector was read at equal KL", *said])
        return "; ".join(["a random vector at equal KL moves less", *said])

    @property
    def stray(self) -> str:
        """What moves as much as the target at the strongest dose that moved it."""
        return "; ".join(self.strays(self.strongest))

    @property
    def strongest(self) -> Move:
        """The strongest coherent dose at which a reading moved as meant."""
        return self.moved[-1]

    @property
    def turned(self) -> Move:
        """The strongest coherent dose at which a reading moved the wrong way."""
        return [move for move in self.held if self.wrong(move)][-1]

    @property
    def against(self) -> str:
        """Which readings those are."""
        found = self.wrong(self.turned)
        return " and ".join(
            f"{name} ({'more' if sign > 0 else 'less'} was meant)"
            for name, sign in self.signs().items()
            if name in found
        )

    @property
    def still(self) -> bool:
        """Whether there are coherent doses, and both readings are known not to move at any."""
        return bool(self.held) and all(
            known(item.low) and not item.moved for move in self.held for item in move.trait.values()
        )

    @property
    def together(self) -> str:
        """Said of intervals that hold at several doses together."""
        many = len(self.doses)
        return f" (intervals hold at all {many} doses together)" if many > 1 else ""

    @property
    def felt(self) -> bool:
        """Whether the highest dose costs coherence."""
        return self.last.at_best < BACK or self.last.perplexity > FLAT_PERPLEXITY

    @property
    def unfelt(self) -> bool:
        """Whether the highest dose is known to cost nothing."""
        return self.last.at_best >= BACK and self.last.perplexity <= FLAT_PERPLEXITY

    @property
    def other(self) -> str:
        """Where else to look when nothing can be told from noise."""
        if self.calm is self.last:
            return "or read larger doses (--check.doses)"
        return written("or read doses above {e.calm.dose} and below {e.last.dose}", self)

    @property
    def blind(self) -> str:
        """Why the instruments cannot see, in words; empty when they can."""
        low = f"base answer mass {self.answer_mass:.2g} is below {LEAST_MASS:g}"
        mass = [low] if self.answer_mass < LEAST_MASS and "answer mass" not in self.reasons else []
        return "; ".join([*([self.reasons] if not self.fit else []), *mass])

    @property
    def plainly(self) -> str:
        """The highest coherent dose's readings and price."""
        if not self.doses:
            return "no dose was read"
        return written("dose {e.dose} reads {e.said} ({e.price})", self.calm)

    def numbers(self) -> dict[str, float]:
        """Of the highest coherent dose: trait, off-targets, coherence, perplexity, KL."""
        found = {"answer_mass": self.answer_mass}
        if not self.doses:
            return found
        calm = self.calm
        readings = {**calm.trait, **calm.off}
        found |= {name: reading.value for name, reading in readings.items()}
        names = ("dose", "coherence", "perplexity", "kl")
        return found | {name: getattr(calm, name) for name in names}


def evidence(sweep: Sweep, qualification: Qualification, axis: Axis, start: Summary) -> Steering:
    """Check 1's evidence.

    Args:
        sweep: Doses read against the base, and random vectors.
        qualification: What the instrument can see on the base.
        axis: Which foundation should move, and which way.
        start: The student at the round's start against the base; in the first round the base.
    """
    looks = sum(not point.control for point in sweep.points)
    moves = [
        (move_of(point, sweep.base_perplexity, axis, start), point.control)
        for point in sweep.points
    ]
    doses = [_held_together(move, looks) for move, control in moves if not control]
    return Steering(
        foundation=axis.foundation,
        sign=axis.sign,
        fit=qualification.fit,
        reasons="; ".join(qualification.reasons),
        answer_mass=qualification.answer_mass,
        doses=tuple(sorted(doses, key=lambda move: move.dose)),
        controls=tuple(move for move, control in moves if control),
    )


def _held_together(move: Move, looks: int) -> Move:
    """The dose with intervals of its trait that hold at so many doses together."""
    trait = {name: widened(reading, looks) for name, reading in move.trait.items()}
    return move.model_copy(update={"trait": trait})


CHECK: Check[Steering] = Check(
    "check 1",
    (
        Rule(
            "works",
            lambda e: bool(e.precise) and not _all_wrong(e) - _all_right(e),
            "Dose {e.working.dose} moves the trait: {e.working.said}{e.together}; "
            "{e.working.price}; {e.specific}.",
            "Go on to the filter; --dose.start {e.working.dose} stays where the model is coherent.",
            tone="good",
        ),
        Rule(
            "too weak",
            lambda e: e.still and e.unfelt and not e.last.leans,
            "Nothing moves up to dose {e.last.dose}: {e.last.said}{e.together}; {e.last.price}.",
            "Lower --dose.coherence or raise --dose.start; widen --vector.band a little, or take a "
            "persona with a plainer contrast.",
        ),
        Rule(
            "too strong",
            lambda e: bool(e.doses) and incoherent(e.first.at_best, e.first.perplexity),
            "Coherence is gone at the lowest dose read, {e.first.dose}: {e.first.price}; "
            "{e.first.said}.",
            "Raise --dose.coherence, lower --dose.start or the fractions of --dose.sweep; a "
            "narrower --vector.band compounds less.",
        ),
        Rule(
            "imprecise",
            lambda e: bool(e.moved) and not e.precise,
            "Something else moves as much at every dose that moves the trait: {e.stray}, against "
            "{e.strongest.said}{e.together}; {e.strongest.price}.",
            "Average more --vector.contexts, try --vector.contrast neutral or another --vector.band"
            ", lower the dose, or match the persona's poles more closely.",
        ),
        Rule(
            "wrong sign",
            lambda e: bool(_all_wrong(e)),
            "Dose {e.turned.dose} moves the wrong way in {e.against}: {e.turned.said}{e.together}; "
            "{e.turned.price}.",
            "Read the steered samples first. If they show the trait, the instrument or the axis "
            "in the persona's file is at fault: try another --measure.instrument or "
            "--measure.vignettes. If they do not, try another persona, --vector.contrast neutral, "
            "or --reverse.",
            over=("imprecise",),
        ),
        Rule(
            "instrument cannot see it",
            lambda e: bool(e.blind),
            "The instrument cannot see {e.foundation} on this model: {e.blind}. For what it is "
            "worth, {e.plainly}.",
            "Choose another --measure.instrument or --measure.vignettes, more --measure.think, or "
            "a larger --model; until then the persona's log-odds alone speak for the trait.",
            over=("works", "too weak", "too strong", "imprecise", "wrong sign", "lost in noise"),
        ),
        Rule(
            "lost in noise",
            lambda e: e.still and (e.felt or e.calm.leans),
            "The push is felt, but no interval excludes 0 at a coherent dose: dose {e.calm.dose} "
            "reads {e.calm.said}{e.together}; {e.calm.price}.",
            "Read more vignettes and prompts (--check.per-foundation 0, --check.prompts; with no "
            "sweep --measure.per-foundation and --measure.prompts) and more --measure.think; "
            "{e.other}.",
        ),
    ),
)


def _all_wrong(e: Steering) -> set[str]:
    """Readings that move the wrong way at some coherent dose."""
    return set().union(*(e.wrong(move) for move in e.held))


def _all_right(e: Steering) -> set[str]:
    return set().union(*(e.right(move) for move in e.held))
