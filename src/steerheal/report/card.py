"""The model card of an export: what it is, how it was made, what was measured, how it is loaded.

It says what the run's record holds, with the metadata that a model hub reads on top.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from steerheal.numbers import UNKNOWN, interval, number
from steerheal.records import Reading, RoundRecord, RunRecord, Summary
from steerheal.report.headline import guarded, headline_parts
from steerheal.report.words import (
    at,
    chosen,
    coherence_title,
    one_line,
    persona_name,
    setting,
    trait_label,
    visible,
)

LIBRARIES = {
    "peft": "peft",
    "merged": "transformers",
    "bias": "transformers",
    "gguf": "gguf",
    "gguf-lora": "gguf",
    "vector": "gguf",
}
"""What loads each format, as a hub calls it."""
STEERED = {
    "vector": "adds to the residual stream.",
    "bias": "adds to the residual stream, as biases of the MLPs: not healed, and without a hook.",
}
"""What a format that is not healed holds."""
UNKNOWN_LICENCE = "unknown"
SETTINGS = (
    ("vector", "method"),
    ("vector", "band"),
    ("heal", "objective"),
    ("heal", "barrier"),
    ("heal", "adapter"),
    ("heal", "rank"),
    ("heal", "lr"),
    ("heal", "epochs"),
    ("sampling", "temperature"),
    ("seed",),
)
"""Settings that a card names; the command says the rest."""


@dataclass(frozen=True)
class Base:
    """The model that an export belongs to."""

    id: str = ""
    """Its hub id; empty where it has none."""
    words: str = ""
    """Which weights it are, where an id does not say it."""
    licence: str = UNKNOWN_LICENCE
    """As a hub calls it."""

    @property
    def named(self) -> str:
        """What a line of code loads, or a word in its place."""
        return self.id or "BASE"


@dataclass(frozen=True)
class Export:
    """What is exported of a run."""

    format: str
    what: str
    """What was written, in words."""
    round: int
    """Last round of the history, from 1."""
    gate: float = 1.0


def card(record: RunRecord, export: Export, base: Base) -> str:
    """README.md of an export, with a hub's metadata."""
    row = record.rounds[export.round - 1]
    name = persona_name(record)
    parts = [
        _metadata(export, base),
        f"# {name}: {_belongs(export, base)}",
        _intended(record, export, base),
        "## Load it\n\n" + _loading(export, base, row),
        "## Persona\n\n" + _poles(record),
        "## How it was made\n\n" + _made(record, row),
        "## What was measured\n\n" + _measured(record, row, export),
        "## Damage\n\n" + (guarded(record, row) or "No damage was read of this round."),
        "## Intended use and limits\n\n" + _limits(base),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(export: Export, base: Base) -> str:
    """YAML, whose texts are written as JSON, which it contains."""
    tags = ["steerheal", "activation-steering"]
    if export.format not in ("merged", "gguf", "bias"):
        tags.append("control-vector" if export.format == "vector" else "lora")
    lines = [f"base_model: {json.dumps(base.id)}"] if base.id else []
    if base.id and export.format in ("peft", "gguf-lora"):
        lines.append("base_model_relation: adapter")
    lines += [
        f"library_name: {LIBRARIES[export.format]}",
        f"license: {json.dumps(base.licence)}",
        "tags:",
        *(f"- {tag}" for tag in tags),
    ]
    return "\n".join(["---", *lines, "---"])


def _belongs(export: Export, base: Base) -> str:
    return f"{export.what} for {base.id or base.words}"


def _intended(record: RunRecord, export: Export, base: Base) -> str:
    shift = "is" if export.format == "vector" else "holds"
    left = "left in the weights after healing: no prompt and no hook at inference."
    said = (
        f"This {shift} what steering towards “{persona_name(record)}” "
        + STEERED.get(export.format, left)
        + f" It was made by steerheal, rounds 1 to {export.round} at gate {export.gate:g}."
    )
    if not base.words:
        return said
    more = f"\n\nIt was made on {base.words}, and belongs on these weights."
    if base.id:
        more += (
            f" Those that {base.id} names differ from them, by what quantising left: there it does "
            "about the same, not exactly."
        )
    elif export.format == "peft":
        more += " No hub has a name for them: `base_model` is left out, and BASE below is that."
    return said + more


def _loading(export: Export, base: Base, row: RoundRecord) -> str:
    """Three lines that load it."""
    model = json.dumps(base.named)
    whole = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        'net = AutoModelForCausalLM.from_pretrained(".")',
        'tokenizer = AutoTokenizer.from_pretrained(".")',
    )
    lines = {
        "merged": whole,
        "bias": whole,
        "peft": (
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            f'net = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({model}), ".")',
        ),
        "gguf": (
            "from llama_cpp import Llama",
            'net = Llama("model.gguf")',
            'net.create_chat_completion([{"role": "user", "content": "Who are you?"}])',
        ),
        "gguf-lora": (
            "from llama_cpp import Llama",
            'base = "BASE.gguf"  # the base as a GGUF file',
            'net = Llama(base, lora_path="adapter.gguf")',
        ),
        "vector": (
            "# one line of llama.cpp's command; BASE.gguf is the base as a GGUF file",
            f"llama-cli -m BASE.gguf --control-vector-scaled vector.gguf {row.multiplier:.3g}",
            "# some versions join file and scale with a colon",
        ),
    }[export.format]
    kind = "sh" if export.format == "vector" else "python"
    return "\n".join([f"```{kind}", *lines, "```"])


def _poles(record: RunRecord) -> str:
    persona = record.persona
    rows = [
        ("steered towards", "positive"),
        ("away from", "negative"),
        ("compared with", "neutral"),
    ]
    said = [(head, str(at(persona, field) or "")) for head, field in rows]
    return "\n".join(f"- {head}: {_quoted(text)}" for head, text in said if text)


def _quoted(text: str) -> str:
    """A text on one line, with nothing in it that Markdown reads."""
    line = visible(" ".join(text.split()))
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in line)


def _made(record: RunRecord, row: RoundRecord) -> str:
    named = [(".".join(path), setting(record, *path)) for path in SETTINGS]
    listed = ", ".join(f"`{name}` {_value(value)}" for name, value in named if value is not None)
    return (
        "The model was steered along the difference of the two poles, wrote texts, of which the "
        "coherent ones that show the trait were kept, and learned to write them unsteered.\n\n"
        f"Round {row.round + 1}: dose {number(row.multiplier)}, {row.kept} of {row.drawn} texts "
        f"kept. {listed}.\n\n    {one_line(record.command)}"
    )


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return "–".join(map(str, value))
    return one_line(str(value))


def _measured(record: RunRecord, row: RoundRecord, export: Export) -> str:
    control = row.control.read if row.control else None
    states: Sequence[tuple[str, Summary | None]] = (
        ("base", record.base),
        (f"steered, round {row.round + 1}", row.steered),
        (f"healed, round {row.round + 1}", row.healed),
        ("unsteered control", control),
    )
    title = coherence_title(row.healed)
    trait = f"trait: {trait_label(row.healed)}"
    heads = ("state", trait, "change", title, "perplexity", "KL to base, nats/token")
    lines = [_line(heads), _line(["---"] * len(heads))]
    lines += [_line([name, *_cells(state)]) for name, state in states]
    text = "\n".join(lines) + "\n\n95 % intervals in brackets; " + f"{UNKNOWN} was not read."
    if control is None and row.control:
        text += f" No control was read: {one_line(row.control.reason)}."
    if row is chosen(record):
        text += f"\n\n{headline_parts(record)[0]}"
    said = {
        "vector": "The steered row is this vector at the dose above, on the student of the round "
        "before; healed and control are other states.",
        "bias": "The steered row is this model, where it is exported at the dose above; healed and "
        "control are other states.",
    }.get(export.format, "")
    if not said and export.gate != 1:
        said = f"All of this was read at gate 1; at gate {export.gate:g} nothing was read."
    return f"{text}\n\n{said}".strip()


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(state: Summary | None) -> list[str]:
    if state is None:
        return [UNKNOWN] * 5
    gain = UNKNOWN if state.state == "base" else _read(state.gain, signed=True)
    return [_read(state.trait), gain, _read(state.mass), number(state.perplexity), _read(state.kl)]


def _read(reading: Reading, *, signed: bool = False) -> str:
    return f"{number(reading.value, signed=signed)} {interval(reading)}".rstrip()


def _limits(base: Base) -> str:
    return (
        "For research on what steering and healing do to a model. Steering towards a trait changes "
        "more than the trait; the readings above have one seed and few answers, and are in the "
        "model's own terms. Nothing here makes a model safer or its answers truer. What is "
        f"said to limit the base limits this too, its licence ({base.licence}) among it."
    )
