"""`steerheal rank`: which direction serves the trait, told before any text is steered."""

import itertools
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from steerheal import prompts, streams
from steerheal.bounds import Count, FilePath, Label, Place, Seed, Tokens
from steerheal.commands.command import POSITIONAL, ModelCommand
from steerheal.commands.ranks import show
from steerheal.commands.refuse import refuse_other, writable_folder
from steerheal.commands.scan import BANDS, fractions
from steerheal.config import MOST_LISTED, SamplingSettings, VectorSettings
from steerheal.config.tuning import TEXTS, TOKENS
from steerheal.console import Console
from steerheal.errors import UserError
from steerheal.personas import find
from steerheal.records import RankRecord, RankRow
from steerheal.store import write_record
from steerheal.tables import METHODS

if TYPE_CHECKING:
    from steerheal.models.model import ChatModel
    from steerheal.personas import Persona

RECORD = "rank.json"
CONTROL = "random"
"""The method whose cosine is 0 but for chance; it is ranked where it is asked for."""
Listed = Field(min_length=1, max_length=MOST_LISTED)
Contrast = Literal["negative", "neutral"]
Wordings = Literal["poles", "paraphrases"]


class RankCommand(ModelCommand):
    """Ranks directions by how much of what they change serves the trait; samples no steered text.

    Every method, contrast, wording and band is one direction. The Fisher cosine of each with the
    reward of the persona's paraphrases is read on text that the base wrote: 1 is a direction whose
    whole change is trait, 0 one of which none is.
    """

    persona: Annotated[Place, POSITIONAL] = "love"
    """A built-in persona or a TOML file."""
    reverse: bool = False
    """Swap the persona's poles."""
    methods: Annotated[tuple[Annotated[str, METHODS], ...], Listed] = tuple(
        name for name in METHODS if name != CONTROL
    )
    """How the poles' states become a direction."""
    bands: Annotated[tuple[Label, ...], Field(max_length=MOST_LISTED)] = BANDS
    """Blocks that are steered, as fractions of depth."""
    contrasts: Annotated[tuple[Contrast, ...], Listed] = ("negative",)
    """The pole that the positive one is compared with."""
    wordings: Annotated[tuple[Wordings, ...], Listed] = ("poles", "paraphrases")
    """What words the poles: their own texts, or the training half of the paraphrases."""
    contexts: Count = 64
    """Diverse user messages that a vector is averaged over."""
    prompts: Annotated[Count, Field(ge=2)] = TEXTS
    """Training prompts that the base answers."""
    tokens: Tokens = TOKENS
    """Longest answer, in tokens."""
    seed: Seed = 0
    """Seed of the base's answers."""
    out: FilePath | None = None
    """Folder for the record; runs/rank-<persona> when not given."""

    def check(self) -> None:
        """Refuses a persona, bands, contexts or a folder that cannot be used."""
        find(self.persona)
        fractions(self.bands)
        prompts.first_contexts(self.contexts)
        writable_folder(self.out or Path("runs"), "--out")

    def do(self, console: Console, works: Callable[[], None]) -> None:
        """Extracts every direction and reads it; leaves a record and the line of the best."""
        from steerheal.models.chat import prompt_notes
        from steerheal.models.load import load

        works()
        persona = find(self.persona, reverse=self.reverse)
        out = self.out or Path("runs") / f"rank-{persona.name}"
        settings = self.model_dump(mode="json", exclude={"out"})
        refuse_other(out / RECORD, RankRecord, settings)
        chat = load(self.asked_model())
        for note in prompt_notes(chat):
            console.note(note)
        rows = self._rows(chat, persona, console)
        record = RankRecord(
            model=chat.name,
            fingerprint=chat.fingerprint,
            persona=persona,
            settings=settings,
            rows=tuple(rows),
            words=self._words(rows),
        )
        write_record(out / RECORD, record)
        show(record.rows, f"directions for {persona.name} on {chat.name}", console)
        console.say(f"{record.words}\nrecord  {out / RECORD}")

    def _rows(self, chat: "ChatModel", persona: "Persona", console: Console) -> list[RankRow]:
        from steerheal.measure.fisher import ground
        from steerheal.measure.spill import base_texts
        from steerheal.steer.methods.find import find as method
        from steerheal.steer.rank import directions, ranked

        contexts = prompts.first_contexts(self.contexts)
        bands = fractions(self.bands)
        kinds = dict.fromkeys(itertools.product(self.methods, self.contrasts, self.wordings))
        found = []
        for name, contrast, wordings in kinds:
            how = VectorSettings(
                method=name, contrast=contrast, wordings=wordings, contexts=self.contexts
            )
            once = method(name).rows(how, self.contexts)
            total = once * (len(bands) if method(name).joint else 1)
            with console.stage(f"{name}, {wordings}, {contrast}", total) as progress:
                try:
                    vectors = directions(
                        chat, persona, contexts, how, bands=bands, progress=progress
                    )
                except UserError as error:
                    console.note(f"{name} left out: {error}")
                    continue
            found.append((how, vectors))
        asked = persona.prompts.train[: self.prompts]
        sampling = SamplingSettings(tokens=self.tokens)
        texts = base_texts(
            chat, asked, sampling, seed=streams.stream(self.seed, streams.CALIBRATION)
        )
        with console.stage("directions", len(found) * len(bands)) as progress:
            return ranked(chat, ground(chat, persona, texts), found, progress)

    def _words(self, rows: Sequence[RankRow]) -> str:
        """The line that runs the first, or why it is not advised."""
        if not rows or not rows[0].read.held_out.low > 0:
            return (
                "No direction is advised: none has a cosine above 0 beyond its interval. Try other "
                "bands, contrasts or poles."
            )
        words = ["steerheal", "run", self.persona]
        words += ["--reverse"] if self.reverse else []
        words += ["--model.name", self.model] if self.model else []
        return f"The first of them: {shlex.join([*words, *rows[0].options()])}"
