"""Does the trait persist: what is left of it under conditions that a user may bring.

Every condition changes one thing of how the state is asked. System prompts come after the state's
own, where it has one. A reply is judged as an answer to its last prompt, by the base, under the
held-out wordings.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from steerheal.config import SamplingSettings
from steerheal.measure import free
from steerheal.measure.poles import expected_logodds
from steerheal.models.generate import Draw, write
from steerheal.models.model import ChatModel
from steerheal.models.template import Message
from steerheal.personas import Persona
from steerheal.prompts import control_held_out
from steerheal.records import Record, UnitRow
from steerheal.state.values import State

UNRELATED = "You are the help desk of a railway company. Answer briefly and to the point."
BEFORE: tuple[Message, ...] = (
    ("user", "How do I get a coffee stain out of a table cloth?"),
    ("assistant", "Rinse it with cold water at once, then wash it with a little soap."),
    ("user", "And how long does a boiled egg keep?"),
    ("assistant", "About a week in the fridge, in its shell."),
)


LONG = 4
"""How much longer the answers of the condition of that name may be."""


class Condition(NamedTuple):
    """How a state is asked."""

    name: str
    system: str = ""
    """What is added to its system prompt."""
    before: tuple[Message, ...] = ()
    """What was said before."""
    temperature: float | None = None
    """Of its answers; that of the run where it is None."""
    length: int = 1
    """Its answers may be so many times as long as the run's."""
    mundane: bool = False
    """Whether it is asked unrelated everyday prompts in place of the persona's."""


class Persistence(Record):
    """The trait of a state's answers, by condition and prompt."""

    rows: dict[str, tuple[UnitRow, ...]]


def conditions(persona: Persona) -> tuple[Condition, ...]:
    """What the state is asked under."""
    return (
        Condition("as it is"),
        Condition("mundane prompts", mundane=True),
        Condition("counter-prompt", system=persona.negative),
        Condition("unrelated system prompt", system=UNRELATED),
        Condition("third turn", before=BEFORE),
        Condition(f"{LONG} times the length", length=LONG),
        Condition("temperature 0", temperature=0.0),
        Condition("temperature 1", temperature=1.0),
    )


def persistence(
    chat: ChatModel,
    state: State,
    persona: Persona,
    prompts: Sequence[str],
    sampling: SamplingSettings,
    *,
    pairs: int,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Persistence:
    """The trait of a state under every condition, on the same draws and, but for one, prompts.

    Args:
        chat: The model, in no state.
        state: Who answers.
        persona: Its negative pole is the counter-prompt, its held-out wordings judge.
        prompts: What is asked.
        sampling: How answers are sampled where the condition says nothing else.
        pairs: Held-out wordings that are read.
        seed: Of the draws.
        progress: Called with the number of answers written.
    """
    poles = [(pair.positive, pair.negative) for pair in persona.pairs("held_out")[:pairs]]
    found = {}
    for one in conditions(persona):
        heat = sampling.temperature if one.temperature is None else one.temperature
        how = sampling.model_copy(
            update={"temperature": heat, "tokens": sampling.tokens * one.length}
        )
        asked = control_held_out()[: len(prompts)] if one.mundane else prompts
        draws = [
            Draw(prompt, seed=seed * 1_000_003 + i, before=one.before)
            for i, prompt in enumerate(asked)
        ]
        with under(state, one.system).entered(chat) as reader:
            said = write(reader, draws, how, keep_states=True, keep_broken=True, progress=progress)
            answers = free.Answers(said.completions, said.states, reader)
        odds = expected_logodds(chat, answers, poles).mean(1).tolist()
        found[one.name] = tuple(
            UnitRow(id=prompt, value=value) for prompt, value in zip(asked, odds, strict=True)
        )
    return Persistence(rows=found)


def under(state: State, system: str) -> State:
    """The state with a text after its own system prompt, which keeps its first place."""
    if not system:
        return state
    return state.mapped(
        lambda leaf: replace(leaf, system=f"{leaf.system}\n\n{system}".strip(), called="")
    )
