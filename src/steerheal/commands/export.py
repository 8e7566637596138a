"""`steerheal export`: what the rounds of a run changed, as files that other tools load."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from steerheal.bounds import FilePath, Gate, Label, RoundOrBest
from steerheal.commands.command import POSITIONAL, Command
from steerheal.commands.refuse import writable_folder
from steerheal.config import ModelSettings
from steerheal.console import Console
from steerheal.errors import UserError
from steerheal.records import RunRecord
from steerheal.store import read_run, round_folder

if TYPE_CHECKING:
    from steerheal.heal.export import Exported
    from steerheal.models.model import ChatModel
    from steerheal.report.card import Base
    from steerheal.state.values import Plain

RANKED = ("peft", "gguf-lora")
"""Formats that have a rank."""
MERGED = ("merged", "gguf", "bias")
"""Formats that hold the whole model."""


class ExportCommand(Command):
    """Exports a run's history with a model card, and loads it again to see that it is the same."""

    run: Annotated[FilePath, POSITIONAL]
    """The run folder."""
    format: Literal["peft", "merged", "gguf", "gguf-lora", "vector", "bias"] = "peft"
    """One PEFT adapter; the whole model with the history in its weights, as safetensors or, where
    it was read from a GGUF file, as another; one adapter for llama.cpp; the round's steering vector
    for llama.cpp; or, for Llama models, the round's steered model with its vector as biases,
    without a hook, in the form that vLLM reads."""
    round: RoundOrBest = 0
    """Last round of the history, from 1; 0 is the run's best."""
    gate: Gate = 1.0
    """Gate of every adapter of the history; 0 is the base, whose adapter changes nothing."""
    dose: Gate = 0.0
    """bias: dose of the vector; 0 is the round's own."""
    rank: Annotated[int, Field(ge=0, le=4096)] = 0
    """Rank of the adapter, by singular values of every layer's change; 0 is the sum of the rounds'
    ranks, which loses nothing."""
    out: FilePath | None = None
    """Where to; `<run>/export-<format>` when not given."""
    push: Label = ""
    """Repository of the Hugging Face hub (owner/name) that the export is uploaded to as well; one
    that is not there is made, private."""

    def check(self) -> None:
        """Refuses what is no run, a place that is taken, and an upload that nobody may make."""
        record = read_run(self.run)
        if self.format in MERGED and record.settings(self.run).model.quantize != "none":
            raise UserError(
                f"--format: {self.format} writes into the weights, and the run's are quantised. "
                "Use peft or gguf-lora, and merge that adapter into the model as it is before "
                "quantising."
            )
        if self.rank and self.format not in RANKED:
            raise UserError(
                f"--rank: --format {self.format} has no rank; {' and '.join(RANKED)} have one."
            )
        if self.format == "gguf":
            _source(record.settings(self.run).model)
        if self.gate != 1 and self.format == "vector":
            raise UserError("--gate: a vector has none; its dose is chosen where it is loaded.")
        if self.dose and self.format != "bias":
            raise UserError("--dose: only --format bias holds a vector at a dose.")
        writable_folder(self._free_place(), "--out")
        if self.push:
            from steerheal.models.publish import refuse_unwritable

            refuse_unwritable(self.push)

    def do(self, console: Console, works: Callable[[], None]) -> None:
        """Writes the files and says how far they are from the gated model."""
        from steerheal.pipeline.history import student_of

        works()
        record = read_run(self.run)
        chat, student, number = student_of(record, self.run, self.round, self.gate, console)
        card = partial(self._card, record, number, _base(record.settings(self.run).model, chat))
        if self.format == "vector":
            self._vector(chat, number, card, console)
        elif self.format == "bias":
            self._biased(chat, record, number, card, console)
        else:
            self._adapted(chat, student, number, card, console)
        if self.push:
            from steerheal.models.publish import upload

            what = f"{self.format} of round {number}"
            console.say(f"uploaded to {upload(self._place(), self.push, what)}")

    def _adapted(
        self,
        chat: "ChatModel",
        student: "Plain",
        number: int,
        card: Callable[[str], str],
        console: Console,
    ) -> None:
        """What the rounds changed, in any format but the vector."""
        record = read_run(self.run)
        probes = list(record.whose(self.run).prompts.show)
        made = self._made(chat, student, probes, card)
        base = "" if self.gate else ", which is the base: the rounds change nothing in it"
        where = self._place()
        console.say(f"{made.what} of rounds 1 to {number} at gate {self.gate:g}{base}: {where}")
        console.say(
            f"largest logit difference to the gated model: {made.difference:.2e} "
            f"(logits reach {made.scale:.1f}; {len(probes)} prompts)"
        )
        if self.format == "peft":
            from steerheal.heal.export import vllm_note

            if note := vllm_note(made.rank):
                console.say(note)

    def _made(
        self, chat: "ChatModel", student: "Plain", probes: list[str], card: Callable[[str], str]
    ) -> "Exported":
        """The files, loaded again."""
        from steerheal.heal.export import (
            export_gguf,
            export_gguf_lora,
            export_merged,
            export_peft,
        )

        history, out = student.history, self._free_place()
        if self.format == "merged":
            return export_merged(chat, history, out, probes, card=card, fresh=True)
        if self.format == "gguf":
            source = _source(read_run(self.run).settings(self.run).model)
            return export_gguf(chat, history, source, out, probes, card=card)
        if self.format == "peft":
            return export_peft(chat, history, out, probes, rank=self.rank, card=card, fresh=True)
        return export_gguf_lora(chat, history, out, probes, rank=self.rank, card=card)

    def _vector(
        self, chat: "ChatModel", number: int, card: Callable[[str], str], console: Console
    ) -> None:
        """The round's vector, which was read from the student of the round before."""
        from steerheal.heal.export import export_vector
        from steerheal.state.vector import SteeringVector

        vector = SteeringVector.load(round_folder(self.run, number - 1) / "vector.safetensors")
        out = self._free_place()
        what = export_vector(chat, vector, out, card=card)
        on = "the base" if number == 1 else f"the student of round {number - 1}"
        console.say(f"{what} of round {number}, read from {on}: {out}")
        console.say("read back, every direction is the same")

    def _biased(
        self,
        chat: "ChatModel",
        record: RunRecord,
        number: int,
        card: Callable[[str], str],
        console: Console,
    ) -> None:
        """The model that wrote the round's text, as a checkpoint."""
        from steerheal.heal.export import export_bias
        from steerheal.pipeline.history import history_of
        from steerheal.state.vector import SteeringVector

        vector = SteeringVector.load(round_folder(self.run, number - 1) / "vector.safetensors")
        before = history_of(record, self.run, number - 1, self.gate)
        probes, out = list(record.whose(self.run).prompts.show), self._free_place()
        dose = self.dose or record.rounds[number - 1].multiplier
        made = export_bias(chat, before, vector, out, probes, dose=dose, card=card)
        console.say(f"{made.what}, of round {number}: {out}")
        console.say(
            f"largest logit difference to the hook: {made.difference:.2e} "
            f"(logits reach {made.scale:.1f}; {len(probes)} prompts)"
        )

    def _card(self, record: RunRecord, number: int, base: "Base", what: str) -> str:
        from steerheal.report.card import Export, card

        return card(record, Export(self.format, what, number, self.gate), base)

    def _free_place(self) -> Path:
        """Where to.

        Raises:
            UserError: something is there.
        """
        out = self._place()
        if out.exists():
            raise UserError(f"{out} exists. Choose another folder with --out, or remove it.")
        return out

    def _place(self) -> Path:
        return self.out or self.run / f"export-{self.format}"


def _source(settings: ModelSettings) -> Path:
    """The GGUF file that a run's model was read from.

    Raises:
        UserError: it was read from something else, or the file is gone.
    """
    from steerheal.models.gguf import embedded_file

    path = Path(settings.name).expanduser() if settings.name else embedded_file()
    if not path.is_file():
        raise UserError(
            "--format: gguf rewrites the GGUF file that a model was read from, and "
            f"{settings.name} is none. Use --format merged, and turn that into GGUF by llama.cpp's "
            "convert_hf_to_gguf.py; or --format gguf-lora beside a GGUF of the base."
        )
    return path


def _base(settings: ModelSettings, chat: "ChatModel") -> "Base":
    """What a model card says of the base: its hub id where it has one, else which file it is."""
    from steerheal.models.gguf import EMBEDDED_LICENCE
    from steerheal.models.hub import licence
    from steerheal.report.card import UNKNOWN_LICENCE, Base

    if not settings.name:
        return Base(chat.name, chat.origin, EMBEDDED_LICENCE)
    path = Path(settings.name).expanduser()
    said = ("" if path.is_file() else licence(settings.name)) or UNKNOWN_LICENCE
    if path.exists():
        return Base("", chat.origin or f"the model in the folder {path.name}", said)
    return Base(chat.name, chat.origin, said)
