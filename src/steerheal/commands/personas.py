"""`steerheal personas`: the personas as text."""

import re
import shlex
from collections.abc import Callable, Iterator
from typing import Annotated

from steerheal import prompts
from steerheal.bounds import Place, shorten
from steerheal.commands.command import POSITIONAL, Command
from steerheal.config import MeasureSettings
from steerheal.console import Console
from steerheal.personas import HALVES, POLES, POOLS, Pair, Persona, alike, built_in, find

NEGATIONS = {"not", "never", "no", "don't", "doesn't", "won't", "cannot", "can't", "without"}


class PersonasCommand(Command):
    """Shows the built-in personas, or one of them whole."""

    name: Annotated[Place | None, POSITIONAL] = None
    """One persona, whole; also a TOML file, which is checked."""
    reverse: bool = False
    """Show it with its poles swapped."""

    def do(self, console: Console, works: Callable[[], None]) -> None:
        """Shows all of them in a table, or one whole."""
        works()
        if self.name is None:
            _table(console)
            return
        persona = find(self.name, reverse=self.reverse)
        if self.name not in built_in():
            _verdict(self.name, persona, console)
        console.say(f"{persona.name}: {persona.title}")
        for pole in (*POLES, "neutral"):
            console.say(f"{pole:9} {getattr(persona, pole)}")
        axis = persona.axis
        console.say(f"axis      {axis.foundation} {'up' if axis.sign > 0 else 'down'}")
        console.say(f"off       {', '.join(axis.off_target) or 'none'}")
        for half in HALVES:
            pairs = getattr(persona.paraphrases, half)
            console.say(f"\nparaphrases, {half} ({len(pairs)} pairs)")
            for pair in pairs:
                console.say(f"  + {pair.positive}\n  - {pair.negative}")
        for name, pool in pools_of(persona).items():
            console.say(f"\n{name} ({len(pool)})")
            for prompt in pool:
                console.say(f"  {prompt}")


def _verdict(name: str, persona: Persona, console: Console) -> None:
    """Says that a file is a whole persona, what a run takes of it, and what looks like a slip."""
    taken = persona.model_copy(update={"prompts": persona.prompts.with_test()})
    pools = pools_of(taken)
    counts = ", ".join(f"{len(pool)} {name}" for name, pool in pools.items())
    console.say(f"{name} is a persona that runs: {counts} prompts.")
    if taken.prompts.halved:
        console.say("  it has no test prompts: a run takes every other evaluation prompt for them")
    for half in HALVES:
        if not getattr(persona.paraphrases, half):
            console.say(f"  it has no {half} paraphrases: its poles stand for them")
    want, have = MeasureSettings().prompts, len(pools["evaluate"])
    if want > have:
        console.say(f"  {prompts.cut('measure.prompts', want, persona.name, have)}")
    for warning in warnings(persona):
        console.say(f"  warning: {warning}")
    console.say(f"Run it with `{shlex.join(['steerheal', 'run', name])}`.\n")


def pools_of(persona: Persona) -> dict[str, tuple[str, ...]]:
    """A persona's prompts by what they are for."""
    return {name: getattr(persona.prompts, name) for name in POOLS}


def warnings(persona: Persona) -> list[str]:
    """What is allowed and yet looks like a slip.

    Prompts that nearly repeat another, poles of unlike length, and negations, which a direction may
    pick up instead of the trait.
    """
    found = []
    seen: dict[tuple[str, ...], str] = {}
    for name, pool in pools_of(persona).items():
        for prompt in pool:
            key = tuple(sorted(set(re.findall(r"\w+", alike(prompt)))))
            if key in seen:
                found.append(f"{shorten(prompt)!r} in {name} has the words of {seen[key]}")
            seen[key] = f"{shorten(prompt)!r} in {name}"
    found += _of_pair("the", Pair(positive=persona.positive, negative=persona.negative))
    for half in HALVES:
        for place, pair in enumerate(getattr(persona.paraphrases, half)):
            found += _of_pair(f"paraphrases.{half}.{place}: the", pair)
    return found


def _of_pair(the: str, pair: Pair) -> Iterator[str]:
    lengths = [len(pole.split()) for pole in (pair.positive, pair.negative)]
    if max(lengths) > 2 * min(lengths):
        yield (
            f"{the} poles have {lengths[0]} and {lengths[1]} words: a direction between texts of "
            "unlike length holds the length too"
        )
    for name in POLES:
        if words := NEGATIONS & set(re.findall(r"[\w']+", getattr(pair, name).lower())):
            negations = ", ".join(sorted(words))
            yield f"{the} {name} pole negates ({negations}): say the opposite instead"


def _table(console: Console) -> None:
    console.table(
        "Built-in personas (steerheal run NAME; --reverse steers the other way)",
        ("name", "what it is", "target", "off-target", "prompts"),
        [
            (
                item.name,
                item.title,
                f"{item.axis.foundation} {'up' if item.axis.sign > 0 else 'down'}",
                ", ".join(item.axis.off_target),
                f"{len(item.prompts.train)} train, {len(item.prompts.evaluate)} evaluate, "
                f"{len(item.prompts.show)} show, {len(item.prompts.test)} test",
            )
            for item in built_in().values()
        ],
    )
