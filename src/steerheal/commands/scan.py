"""`steerheal scan`: which blocks to steer and how hard, read as trait against coherence."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from steerheal import prompts
from steerheal.bounds import Amount, Count, CountOrNone, FilePath, Label, Place, Tokens
from steerheal.commands.command import POSITIONAL, ReadCommand
from steerheal.commands.refuse import refuse_other, refuse_unreadable, writable_folder
from steerheal.config import MOST_LISTED, CheckSettings, Doses, SamplingSettings
from steerheal.console import Console
from steerheal.disk import write_bytes, write_text
from steerheal.errors import UserError
from steerheal.measure import vignettes
from steerheal.numbers import shown
from steerheal.personas import Persona, find
from steerheal.records import Readings
from steerheal.store import write_record

if TYPE_CHECKING:
    from steerheal.report.scan import ScanRecord

RECORD, FIGURE = "scan.json", "scan"
BANDS = ("0.2-0.4", "0.3-0.5", "0.4-0.6", "0.5-0.7", "0.45-0.55")
NOTHING = "There is no {0} to try; name one or more after --{0}s."


class ScanCommand(ReadCommand):
    """Tries bands of blocks times doses, and names the best trade of trait against coherence."""

    persona: Annotated[Place, POSITIONAL] = "love"
    """A built-in persona or a TOML file."""
    reverse: bool = False
    """Swap the persona's poles."""
    bands: Annotated[tuple[Label, ...], Field(max_length=MOST_LISTED)] = BANDS
    """Blocks that are steered, as fractions of depth."""
    doses: Doses = (0.5, 1.0, 1.5)
    """Multiples of the dose that reaches the target KL, band by band."""
    target_kl: Amount = 1.0
    """95th percentile over positions of KL(steered‖base) at dose 1, in nats: bands compare at equal
    KL. 0 switches it off: doses are then multiples of the raw vector."""
    contexts: Count = 64
    """Diverse user messages that the vector is averaged over."""
    prompts: Annotated[Count, Field(ge=2)] = 16
    """The persona's evaluation prompts that every point answers."""
    tokens: Tokens = 40
    """Longest free answer, in tokens."""
    per_foundation: CountOrNone = 4
    """Vignettes per foundation, a stratified subset; 0 is all of them."""
    out: FilePath | None = None
    """Folder for the record and the figure; runs/scan-<persona> when not given."""

    def check(self) -> None:
        """Refuses a persona, bands, texts or a folder that cannot be used."""
        find(self.persona)
        fractions(self.bands)
        if not self.doses:
            raise UserError(NOTHING.format("dose"))
        prompts.first_contexts(self.contexts)
        refuse_unreadable(self.measure())
        writable_folder(self.out or Path("runs"), "--out")

    def do(self, console: Console, works: Callable[[], None]) -> None:
        """Reads every band at every dose; leaves a record, a figure and a recommendation."""
        from steerheal.commands.bands import Band, Tried, read
        from steerheal.measure import sweep
        from steerheal.measure.auto import resolve
        from steerheal.measure.qualify import in_words
        from steerheal.models.chat import prompt_notes
        from steerheal.models.load import load
        from steerheal.report.draw import png, svg
        from steerheal.report.scan import ScanRecord, advised, figure

        works()
        persona = find(self.persona, reverse=self.reverse)
        options = self._within_pool(persona, console)
        settings = options.model_dump(mode="json", exclude={"out"})
        out = self.out or Path("runs") / f"scan-{persona.name}"
        refuse_other(out / RECORD, ScanRecord, settings)
        # What lies on a hub is fetched before the model is loaded.
        vignettes.chosen(self.measure())
        chat = load(self.asked_model())
        for note in prompt_notes(chat):
            console.note(note)
        measure, tries = resolve(chat, self.measure(), persona.axis)
        for attempt in tries:
            console.note(in_words(attempt))
        check = CheckSettings(
            prompts=options.prompts, per_foundation=self.per_foundation, tokens=self.tokens
        )
        bands = [Band(text, *ends) for text, ends in fractions(self.bands).items()]
        tried = Tried(bands, self.doses, self.target_kl, self.contexts)
        ask = sweep.asked(persona, check, measure, SamplingSettings(), self.seed)
        record = read(chat, tried, ask, console)
        record = advised(record.model_copy(update={"settings": settings}))
        drawing = figure(record)
        write_record(out / RECORD, record)
        write_text(out / f"{FIGURE}.svg", svg(drawing, FIGURE))
        write_bytes(out / f"{FIGURE}.png", png(drawing))
        _show(record, console)
        console.say(f"record  {out / RECORD}\nfigure  {out / FIGURE}.png")

    def _within_pool(self, persona: Persona, console: Console) -> "ScanCommand":
        """The options with no more prompts than the persona has, with a note of a cut."""
        have = len(persona.prompts.evaluate)
        if self.prompts <= have:
            return self
        console.note(prompts.cut("--prompts", self.prompts, persona.name, have))
        return self.model_copy(update={"prompts": have})


def fractions(texts: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Bands such as 0.4-0.6 as their ends, each once.

    Raises:
        UserError: none, or one that is not two rising fractions of depth.
    """
    if not texts:
        raise UserError(NOTHING.format("band"))
    found = {}
    for text in texts:
        low, _, high = text.partition("-")
        try:
            ends = float(low), float(high)
        except ValueError:
            ends = math.nan, math.nan
        if not 0 <= ends[0] < ends[1] <= 1:
            raise UserError(
                f"{text!r} is not a band. Give two rising fractions of depth, such as 0.4-0.6."
            )
        found[text] = ends
    return found


def _show(record: "ScanRecord", console: Console) -> None:
    from steerheal.measure.readings.table import listed, played
    from steerheal.report.words import at

    states = [point.read.summary for point in record.points]
    entries = listed(dict.fromkeys(name for state in states for name in state.values))
    prices = [entry for entry in entries if entry.kind == "coherence" and entry.brief]
    trait = played(next(iter(states), Readings()), "trait")
    columns = (
        "band", "dose", trait.difference, f"Δ{record.foundation} [nats]",
        "coherence [of the base's]", *(entry.label for entry in prices), "front",
    )  # fmt: skip
    rows = [
        (
            point.band,
            f"{point.read.dose:.3g} (×{point.multiple:g})",
            shown(state.gain),
            shown(state.delta_nats[record.foundation]),
            shown(state.coherence),
            *(shown(state.values.get(entry.name)) for entry in prices),
            ("best trade" if point.name == record.knee else "yes") if point.on_front else "",
        )
        for point, state in zip(record.points, states, strict=True)
    ]
    title = (
        f"scan of {at(record.persona, 'name')} on {record.model} · base perplexity "
        f"{record.base_perplexity:.1f} · front against {record.against}"
    )
    console.table(title, columns, rows)
    console.say(record.words)
