"""`steerheal chat`: the base and a run's student answer side by side, turn by turn."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from steerheal.bounds import FilePath, Seed, Temperature, Tokens
from steerheal.commands.command import POSITIONAL, Command
from steerheal.commands.refuse import folded_run, writable_file
from steerheal.config import SamplingSettings
from steerheal.console import Console
from steerheal.disk import whole, write_text
from steerheal.errors import UserError
from steerheal.store import read_run

if TYPE_CHECKING:
    from steerheal.talk.talk import Said, Talk

WORDS = {
    "/left": "WHO: who answers on the left: base, round [N], vector [N] or prompt; both start anew",
    "/right": "WHO: the same on the right",
    "/gate": "NUMBER: scale of every adapter; 0 is the base",
    "/dose": "NUMBER: dose of the vectors",
    "/seed": "NUMBER: seed of the next answers, the same on both sides",
    "/new": "forget what was said",
    "/save": "FILE: both conversations as JSON",
    "/quit": "end, as the end of the input does",
}
"""What can be typed beside a message."""


class ChatCommand(Command):
    """Talks to the base and a round's student side by side: same prompts, same seeds, many turns.

    Answers appear as they are written; under each stand its persona log-odds, its KL to the base,
    and whether it loops. A line that begins with / is a command; /help lists them.
    """

    run: Annotated[FilePath, POSITIONAL]
    """The run folder."""
    tokens: Tokens = 96
    """Longest answer, in tokens."""
    temperature: Temperature = 0.7
    """Softmax temperature; 0 is greedy."""
    seed: Seed = 0
    """Seed of the first answers; every turn takes the next one."""

    def check(self) -> None:
        """Refuses what is no run or has no folded round."""
        folded_run(self.run)

    def do(self, console: Console, works: Callable[[], None]) -> None:
        """Reads lines until /quit or the end of the input."""
        from steerheal.talk.talk import Talk, facing
        from steerheal.talk.voices import begun

        works()
        sampling = SamplingSettings(tokens=self.tokens, temperature=self.temperature)
        voices = begun(self.run, read_run(self.run), console)
        talk = Talk(voices, sampling, self.seed, facing(voices))
        console.note("left: base · right: the best round · /help lists the commands")
        while (line := console.asked("you> ")) is not None:
            said = whole(line).strip()
            if said == "/quit":
                return
            try:
                if said.startswith("/"):
                    console.note(_ordered(talk, said))
                elif said:
                    _answered(talk, said, console)
            except UserError as error:
                console.error(str(error))


def _answered(talk: "Talk", said: str, console: Console) -> None:
    names = [f"{place}: {side.who}" for place, side in talk.sides.items()]
    with console.growing(names) as grown:

        def seen(turns: "Said") -> bool:
            grown([turns[place][-1][1] for place in talk.sides])
            return False

        found = talk.say(said, seen)
    cells = [f"{reply.text}\n\n{reply.words}" for reply in found]
    console.side_by_side([cells], [reply.state for reply in found])


def _ordered(talk: "Talk", said: str) -> str:
    """Does what a line with a / says, and tells it.

    Raises:
        UserError: nothing known, or a wrong value.
    """
    word, _, rest = said.partition(" ")
    rest = rest.strip()
    match word:
        case "/left" | "/right":
            return f"{word[1:]}: {talk.choose(word[1:], rest)}; both start anew"
        case "/gate":
            gate = _number(word, rest)
            for side in talk.sides.values():
                side.gate = gate
        case "/dose":
            dose = _number(word, rest)
            for side in talk.sides.values():
                side.dose = dose
        case "/seed":
            talk.seed = _whole(word, rest)
        case "/new":
            talk.afresh()
        case "/save":
            return _saved(talk, rest)
        case "/help":
            return "\n".join(f"{name:<7}{what}" for name, what in WORDS.items())
        case _:
            raise UserError(f"{word} is no command here: {', '.join(WORDS)}.")
    return f"{word[1:]} {rest}".rstrip()


def _number(word: str, text: str, least: float = -100) -> float:
    """A number in its bounds.

    Raises:
        UserError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= 2**31:
        raise UserError(f"{word}: given {text!r}; a number of at least {least:g} is needed.")
    return value


def _whole(word: str, text: str) -> int:
    """A whole number, not below 0.

    Raises:
        UserError: it is none.
    """
    value = _number(word, text, least=0)
    if value != int(value):
        raise UserError(f"{word}: given {text!r}; a whole number is needed.")
    return int(value)


def _saved(talk: "Talk", name: str) -> str:
    """Writes both conversations.

    Raises:
        UserError: no name, a file that is there, or one that cannot be written.
    """
    if not name:
        raise UserError("/save: give a file.")
    file = Path(name).expanduser()
    if file.exists():
        raise UserError(f"/save: {file} exists; give another file.")
    writable_file(file, "/save")
    write_text(file, json.dumps(talk.transcript(), ensure_ascii=False, indent=1) + "\n")
    return f"saved to {file}"
