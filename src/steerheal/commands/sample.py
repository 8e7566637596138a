"""`steerheal sample`: answers of a run's student beside the base's."""

import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Self

from pydantic import Field

from steerheal.bounds import FilePath, Gate, RoundOrBest, Seed, Temperature, Text, Tokens, decoded
from steerheal.commands.command import POSITIONAL, Command
from steerheal.config import MOST_BYTES, SamplingSettings
from steerheal.console import Console
from steerheal.errors import UserError
from steerheal.line import read
from steerheal.store import read_run


class SampleCommand(Command):
    """Shows answers of a round's student beside the base's."""

    run: Annotated[FilePath, POSITIONAL]
    """The run folder."""
    round: RoundOrBest = 0
    """Round whose student answers, from 1; 0 is the run's best."""
    gate: Gate = 1.0
    """Gate, that is scale, of every adapter of the history; 0 is the base."""
    prompt: Annotated[tuple[Text, ...], Field(max_length=1_000)] = ()
    """What is asked, one or more; - takes a prompt from every line of standard input; the persona's
    show prompts when not given."""
    tokens: Tokens = 96
    """Longest answer, in tokens."""
    temperature: Temperature = 0.7
    """Softmax temperature; 0 is greedy."""
    seed: Seed = 0
    """Seed of both answers."""

    @classmethod
    def of(cls, argv: Sequence[str]) -> Self:
        """The options that a line gives, with what is piped in.

        Raises:
            UserError: an unknown option, a missing or wrong value, nothing piped in.
        """
        given = read(cls, argv)
        if "-" in given.values.get("prompt", ()):
            given.values["prompt"] = _with_piped(given.values["prompt"])
        return cls.judged(given)

    def check(self) -> None:
        """Refuses what is no run."""
        read_run(self.run)

    def do(self, console: Console, works: Callable[[], None]) -> None:
        """Asks both the same with the same randomness, and shows their answers side by side."""
        from steerheal.models.generate import Draw, generate
        from steerheal.models.reordered import reorder
        from steerheal.pipeline.history import student_of

        works()
        record = read_run(self.run)
        chat, student, number = student_of(record, self.run, self.round, self.gate, console)
        reorder(chat)
        prompts = self.prompt or record.whose(self.run).prompts.show
        sampling = SamplingSettings(tokens=self.tokens, temperature=self.temperature)
        draws = [Draw(prompt, seed=self.seed + i) for i, prompt in enumerate(prompts)]
        with console.stage("base", len(draws)) as progress:
            before = generate(chat, draws, sampling, progress=progress)
        name = f"round {number}, gate {self.gate:g}"
        after = before
        if self.gate != 0:
            with console.stage(name, len(draws)) as progress, student.entered(chat) as reader:
                after = generate(reader, draws, sampling, progress=progress)
        rows = [(a.prompt, a.text, b.text) for a, b in zip(before, after, strict=True)]
        console.side_by_side(rows, ("prompt", "base", name))


def _with_piped(prompts: Sequence[str]) -> list[str]:
    """The prompts, with the lines of standard input where a hyphen stands.

    Raises:
        UserError: there is nothing to read.
    """
    text = decoded(sys.stdin.buffer.read(MOST_BYTES + 1), what="standard input", most=MOST_BYTES)
    piped = [line for line in text.split("\n") if line.strip()]
    if not piped:
        raise UserError("--prompt -: standard input holds no prompt.")
    return [line for prompt in prompts for line in (piped if prompt == "-" else [prompt])]
