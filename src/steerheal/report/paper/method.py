"""The methods paragraphs, filled from the settings that were used, with their sources.

Settings are typed, or a mapping as another version wrote them: what they lack is not spoken of.
"""

from collections.abc import Callable, Mapping

from steerheal.numbers import number
from steerheal.records import Admission
from steerheal.records.judge import LEAST
from steerheal.report.paper.prose import Prose, cite, cited_of
from steerheal.report.words import at, one_line
from steerheal.tables import (
    AGGREGATES,
    BARRIERS,
    GROUP,
    METHODS,
    NO_BARRIER,
    OBJECTIVES,
    TEACHERS,
    Table,
)

UNDOSED = ("prompt", "plain")
"""Teachers without a vector."""
POSITIONS = {
    "tag": "at the assistant tag",
    "last": "at the last token of a short answer by each pole",
    "mean": "over the mean of a short answer by each pole",
}
REFERENCES = {
    "prev": "the student before the round",
    "base": "the base model",
    "last_good": "the student of the newest round that kept its coherence",
}


class Setting:
    """Settings of a run by their dotted names, as text."""

    def __init__(self, config: object) -> None:
        """Settings, typed or as a mapping."""
        self.config = config

    def __call__(self, name: str) -> object:
        """A setting; None where there is none."""
        return at(self.config, *name.split("."))

    def number(self, name: str) -> str:
        """A numeric setting in three digits; a dash where there is none."""
        value = self(name)
        return number(float(value)) if isinstance(value, int | float) else number(float("nan"))

    def row(self, table: Table, name: str) -> str:
        """What a name of an open set is, as its table says it; a place in Python as it stands."""
        value = str(self(name) or "unknown")
        return table.rows[value].says if value in table.rows else value

    def band(self, name: str) -> str:
        """Blocks between two fractions of depth."""
        value = self(name)
        low, high = value if isinstance(value, tuple | list) and len(value) == 2 else ("?", "?")
        return f"{low} to {high} of the depth"

    def above(self, name: str) -> bool:
        """Whether a numeric setting is above 0."""
        value = self(name)
        return isinstance(value, int | float) and value > 0


def model_words(config: object, environment: Mapping[str, str], persona: object) -> Prose:
    """Which model, which persona, and with what it was computed."""
    own = "model embedded" if at(config, "model", "name") == "" else ""
    libraries = [name for name in cited_of("library") if name in environment]
    versions = ", ".join(
        f"{name} {environment[name]}" for name in ("steerheal", *libraries) if name in environment
    )
    contrast = str(at(config, "vector", "contrast") or "negative")
    return [
        f"The model is {environment.get('model', 'not named in the record')}",
        cite(own),
        f" in {environment.get('dtype', 'unknown precision')}",
        *_packed(config),
        f", computed on {environment.get('device', 'an unknown device')} with {versions}",
        cite(*(f"library {name}" for name in libraries)),
        f". The persona is {at(persona, 'name')}: {at(persona, 'title')}. Its positive pole is the "
        f"system prompt “{at(persona, 'positive')}”, held against “{at(persona, contrast)}”.",
    ]


def _packed(config: object) -> Prose:
    """In how few bits its base weights were read."""
    how = at(config, "model", "quantize")
    return (
        [f", its linear layers in {how}", cite(f"model {how}")] if how not in (None, "none") else ()
    )


def steering_words(config: object) -> Prose:
    """Vector, teacher, sampling, dose and filter."""
    have = Setting(config)
    teacher, k = str(have("teacher")), "sampling.top_k"
    likeliest = f" and the {have.number(k)} likeliest tokens" if have.above(k) else ""
    return [
        *([] if teacher in UNDOSED else _vector(have)),
        f"What is trained on is written by {have.row(TEACHERS, 'teacher')}",
        cite(f"teacher {teacher}"),
        ", to the persona's training prompts, at temperature "
        f"{have.number('sampling.temperature')} with nucleus {have.number('sampling.top_p')}"
        f"{likeliest}, up to {have.number('sampling.tokens')} tokens. {_dose(have, teacher)}"
        f"{'' if teacher in UNDOSED else _push(have)}"
        "Answers are dropped by rules whose limits are set on "
        f"{have.number('filter.calibration_texts')} unsteered answers of the base, of which the "
        "combined rule for incoherence may drop a share of "
        f"{have.number('filter.false_drop')}.{_best_of(have)}",
    ]


def _push(have: Setting) -> str:
    """How the dose runs along an answer, where it is not the same at every token."""
    found = {
        "the prompt is read without the vector": have("push.prompt") is False,
        f"the dose falls along it ({have('push.decay')})": have("push.decay")
        not in (None, "constant"),
        f"no token is more than {have.number('push.kl_budget')} nats from the base": have.above(
            "push.kl_budget"
        ),
        "what loops or spikes is taken back": have("push.backtrack") is True,
    }
    said = [words for words, on in found.items() if on]
    return f"Within an answer {', '.join(said)}. " if said else ""


def judge_words(judge: Admission | None) -> Prose:
    """Who judged the answers, and what its word is worth."""
    if judge is None:
        return ()
    counts = "counts" if judge.admitted else "is shown without counting"
    return [
        f"Another model, {one_line(judge.judge)}, judged every free answer through its logits; how "
        "well it tells replies that make sense was measured beforehand (AUC "
        f"{number(judge.auc)} within dose on {judge.replies} labelled replies, of {number(LEAST)} "
        f"that it needs), so that its coherence {counts}."
    ]


def _vector(have: Setting) -> Prose:
    return [
        f"The steering vector is {have.row(METHODS, 'vector.method')}",
        cite(f"method {have('vector.method')}"),
        f", over {have.number('vector.contexts')} contexts, read "
        f"{POSITIONS.get(str(have('vector.position')), 'at an unknown place')}. It acts on the "
        f"blocks from {have.band('vector.band')}. ",
    ]


def _dose(have: Setting, teacher: str) -> str:
    if teacher in UNDOSED:
        return ""
    fall = (
        f"and is lowered by a factor of {have.number('dose.step')} until what the filter keeps is "
        f"a share of {have.number('dose.target')} of what it keeps of the base's own text"
    )
    if have("dose.start") == "auto":
        return (
            "A round's dose starts where the share of coherent answers falls to "
            f"{have.number('dose.coherence')} of the base's own, {fall}. "
        )
    return f"A round's dose starts at {have.number('dose.start')} {fall}. "


def _best_of(have: Setting) -> str:
    drawn = have("filter.best_of")
    if not isinstance(drawn, int) or drawn < 2:
        return ""
    which = "the one with the most trait" if have("filter.pick") == "best" else "any one"
    return f" Of {drawn} answers to a prompt {which} is trained on."


def healing_words(config: object) -> list[Prose]:
    """Adapter, fit, and every term of the loss that was on."""
    have, objective = Setting(config), str(at(config, "heal", "objective"))
    targets = have("heal.targets")
    layers = ", ".join(map(str, targets)) if isinstance(targets, tuple | list) else "unknown"
    fit: Prose = [
        f"A {have('heal.adapter')} adapter",
        cite(f"adapter {have('heal.adapter')}"),
        f" of rank {have.number('heal.rank')} (alpha {have.number('heal.alpha')}) on the linear "
        f"layers ({layers}) of the blocks from {have.band('heal.band')} is trained with AdamW",
        cite("heal adamw"),
        f" for {have.number('heal.epochs')} epochs of {have.number('heal.rows')} answers a step at "
        f"a peak learning rate of {have.number('heal.lr')}. The fit is "
        f"{have.row(OBJECTIVES, 'heal.objective')}",
        cite(f"objective {objective}"),
        f". It is folded into the weights at gate {have.number('gate')}.",
    ]
    terms = [part for words in TERMS for part in words(have)]
    return [fit, terms or ["The loss has no other term: no barrier and no anchor."]]


def _barrier(have: Setting) -> Prose:
    if have("heal.barrier") in (None, NO_BARRIER) or not have.above("heal.lam"):
        return ()
    reference = REFERENCES.get(str(have("heal.reference")), "an unknown reference")
    return [
        f"A barrier adds λ·relu(D − τ) with λ = {have.number('heal.lam')} and τ = "
        f"{have.number('heal.tau')} nats, where D is {have.row(BARRIERS, 'heal.barrier')}, "
        f"{have.row(AGGREGATES, 'heal.aggregate')} over positions{_read_on(have)}; the "
        f"reference is {reference}",
        cite(f"barrier {have('heal.barrier')}"),
        ". ",
    ]


def _read_on(have: Setting) -> str:
    """Where D is read, if that is not the whole distribution on the text that is fitted."""
    aside = have("heal.barrier_text") == "unrelated"
    parts = ["of the reference's own answers to unrelated prompts"] if aside else []
    parts += ["the token that stands there left out"] if have("heal.off_label") is True else []
    return "".join(f", {part}" for part in parts)


def _anchor(have: Setting) -> Prose:
    if not have.above("heal.anchor"):
        return ()
    return [
        f"An anchor adds {have.number('heal.anchor')} times KL(reference‖student) on the "
        "reference's own answers to unrelated prompts. "
    ]


def _others(have: Setting) -> Prose:
    found: list[str] = []
    if (on := have("heal.on_policy")) and isinstance(on, int):
        found.append(f"the student writes the text itself {on} times")
    if isinstance(mean := have("heal.average"), int) and mean > 1:
        found.append(f"{mean} adapters of different seeds are averaged")
    if have.above("heal.subtract"):
        other = have("heal.subtract_text") or "unsteered"
        found.append(
            f"{have.number('heal.subtract')} times the adapter of {other} text is subtracted"
        )
    if have.above("heal.mask"):
        found.append(f"tokens below {have.number('heal.mask')} of the base's likeliest are masked")
    if have.above("heal.spectral"):
        found.append(f"the operator norms of ΔW are added with weight "
                     f"{have.number('heal.spectral')}")  # fmt: skip
    return [f"Besides, {', '.join(found)}", cite(*heal_uses(have)), "."] if found else ()


def heal_uses(have: Setting) -> list[str]:
    """What a heal uses besides its objective; what is rewarded is on policy by its own source."""
    names = [name for name in ("on_policy", "mask", "spectral") if have.above(f"heal.{name}")]
    rewarded = have("heal.objective") == GROUP
    return [f"heal {name}" for name in names if not (rewarded and name == "on_policy")]


TERMS: tuple[Callable[[Setting], Prose], ...] = (_barrier, _anchor, _others)
"""What may be added to the fit, in the order in which it is spoken of."""
