"""Sampling, healing and reading on this machine's device, each beside what one would do instead.

One table from one run: steered sampling at mixed doses against `generate` with a hook at one dose,
a heal without a barrier against transformers' Trainer with the same LoRA and rows, forced choice
against the protocol run the plain way (batches of 8, as upstream does), the likelihood instrument
against one forward over every vignette with every reason. Both ways are run in turns after a first
call of each that does not count; the best time counts. The share of the bound is the time that the
matrix products of the way's own forwards take with nothing between them, over the time that it
took. Memory is the device's peak above the weights; on a CPU, where the peak of a part cannot be
had, it is not given, and the process's own peak is printed at the end. On a GPU the model is in
bfloat16. `--shape FILE` measures a model of that configuration with random weights and
the tokenizer of `--model`, of a size that is not at hand: what it writes means nothing, what it
costs does.

    python benchmarks/figures.py [--model NAME] [--shape benchmarks/shapes/qwen2.5-7b.json]
"""

import argparse
import json
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import forced_choice
import heal
import sampling
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from steerheal.config import ModelSettings, SamplingSettings, VectorSettings
from steerheal.measure import forced_choice as instrument
from steerheal.measure import likelihood, protocol, vignettes
from steerheal.measure.likelihood import NEUTRAL, PREFILL
from steerheal.measure.vignettes import Vignette
from steerheal.models.asking import offered
from steerheal.models.batch import left_padded
from steerheal.models.generate import Draw, generate
from steerheal.models.load import load, wrap
from steerheal.models.model import ChatModel
from steerheal.models.reordered import reorder
from steerheal.models.score import Pair
from steerheal.personas import find
from steerheal.prompts import contexts
from steerheal.state.vector import SteeringVector
from steerheal.steer.vector import extract

WARM = 2
"""Rows or batches of the call that does not count."""


@dataclass
class Way:
    """One way of doing a piece of work."""

    run: Callable[[], int]
    """Does it, and says how many units of work that was."""
    warm: Callable[[], object]
    """A little of it, once before the first time that counts."""
    seconds: float = float("inf")
    units: int = 0
    peak: float = float("nan")
    """Bytes above the weights."""

    def again(self, device: torch.device) -> None:
        """Does it once more, and keeps the best time."""
        if not self.units:
            self.warm()
        gpu = device.type == "cuda"
        if gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if gpu else 0
        start = time.perf_counter()
        self.units = self.run()
        if gpu:
            torch.cuda.synchronize()
            self.peak = float(torch.cuda.max_memory_allocated() - before)
        self.seconds = min(self.seconds, time.perf_counter() - start)

    @property
    def rate(self) -> float:
        """Units per second."""
        return self.units / self.seconds

    def memory(self) -> str:
        """The peak in MiB."""
        return f"{self.peak / 2**20:,.0f}" if self.peak == self.peak else "–"


@dataclass
class Piece:
    """A piece of work, and two ways of doing it."""

    name: str
    unit: str
    ours: Way
    theirs: Way
    instead: str
    """What the other way is."""
    trains: bool = False
    bound: float = float("nan")
    """Seconds of its own products."""

    def bounded(self, chat: ChatModel) -> None:
        """Runs it once more to see what it multiplies, and times that alone."""
        with heal.shapes(chat) as (forwards, heads):
            self.ours.run()
        self.bound = heal.Products(chat).seconds(forwards, heads, trains=self.trains)

    def row(self) -> str:
        """A line of the table."""
        ours, theirs = self.ours, self.theirs
        instead = (
            f"{self.instead} | {theirs.rate:,.1f} {self.unit}/s | {ours.rate / theirs.rate:.2f}"
            if theirs.units
            else "– | – | –"
        )
        return (
            f"| {self.name} | {ours.rate:,.1f} {self.unit}/s | {instead} | "
            f"{self.bound / ours.seconds:.2f} | {ours.memory()} | {theirs.memory()} |"
        )


def shaped(chat: ChatModel, shape: Path) -> ChatModel:
    """A model of that configuration with random weights, with this one's tokenizer and device."""
    values = json.loads(shape.read_text(encoding="utf-8"))
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    device, dtype = chat.device, chat.net.dtype
    tokenizer, name = chat.tokenizer, f"{shape.stem} (random weights)"
    del chat
    with device:
        net = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return wrap(net, tokenizer, name=name)


def sampled(chat: ChatModel, rows: int, tokens: int) -> Piece:
    """Steered sampling."""
    persona = find("love")
    vector = extract(chat, persona, contexts()[:8], VectorSettings())
    known = persona.prompts.train
    asked = [known[i % len(known)] for i in range(rows)]

    def way(write: Callable[[ChatModel, SteeringVector, list[str], int], int]) -> Way:
        return Way(
            lambda: write(chat, vector, asked, tokens),
            lambda: write(chat, vector, asked[:WARM], WARM),
        )

    return Piece(
        f"steered sampling, {rows} rows × {tokens} tokens",
        "tokens",
        way(sampling.ours),
        way(sampling.theirs),
        "`generate` with a hook, one dose",
    )


def healed(chat: ChatModel, pairs: Sequence[Pair]) -> Piece:
    """A heal without a barrier."""
    data = list(pairs)
    tokens = sum(len(rest) for _, rest in data)

    def way(train: Callable[[ChatModel, list[Pair]], None]) -> Way:
        def run() -> int:
            train(chat, data)
            return tokens

        return Way(run, lambda: train(chat, data[: heal.UNBARRED.rows * WARM]))

    return Piece(
        f"heal, {len(data)} texts in steps of {heal.UNBARRED.rows}",
        "completion tokens",
        way(heal.unbarred),
        way(heal.theirs),
        "transformers' Trainer, same LoRA",
        trains=True,
    )


def read(chat: ChatModel, count: int, think: int, rows: int) -> Piece:
    """Forced choice."""
    wording, known = protocol.load(), vignettes.load("everyday")
    asked = known[:count]

    def ours(some: Sequence[Vignette], think: int) -> int:
        instrument.read(chat, some, wording, think=think, rows=rows)
        return len(some)

    def theirs(some: Sequence[Vignette], think: int) -> int:
        forced_choice.plain(chat, some, wording, think)
        return len(some)

    return Piece(
        f"forced choice, {count} vignettes × 2 orders, {think} think tokens",
        "vignettes",
        Way(lambda: ours(asked, think), lambda: ours(known[:WARM], WARM)),
        Way(lambda: theirs(asked, think), lambda: theirs(known[:WARM], WARM)),
        "the protocol by `generate`, batches of 8",
    )


def likely(chat: ChatModel, count: int) -> Piece:
    """The likelihood instrument."""
    known = vignettes.load("everyday")
    asked = known[:count]
    reasons = list(likelihood.REASONS.values())

    def ours(some: Sequence[Vignette]) -> int:
        likelihood.read(chat, some)
        return len(some)

    @torch.inference_mode()
    def theirs(some: Sequence[Vignette]) -> int:
        texts = [one.text for one in some]
        texts += [act for name in {one.condition for one in some} for act in NEUTRAL[name]]
        for text in texts:
            one = offered(chat, likelihood.QUESTION.format(vignette=text), PREFILL, reasons)
            rows = [[*one.line.parts[0], *rest] for rest in one.rests]
            ids, mask, _ = left_padded(rows, chat.stop_ids()[0], chat.device)
            chat.net(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)
        return len(some)

    return Piece(
        f"likelihood, {count} vignettes × {len(reasons)} reasons",
        "vignettes",
        Way(lambda: ours(asked), lambda: ours(known[:WARM])),
        Way(lambda: theirs(asked), lambda: theirs(known[:WARM])),
        "a forward over every reason",
    )


def card(device: torch.device) -> str:
    """What it ran on."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="", help="hub id, folder or GGUF; the embedded one")
    parser.add_argument("--shape", type=Path, help="configuration of a model of random weights")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rows", type=int, default=48, help="rows that are sampled together")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=6, help="optimiser steps of the heal")
    parser.add_argument("--vignettes", type=int, default=16)
    parser.add_argument("--think", type=int, default=64)
    parser.add_argument("--rollouts", type=int, default=128, help="rollouts read together by ours")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--reorder", action="store_true", help="float32 products as in a run")
    parser.add_argument("--alone", action="store_true", help="without the other ways")
    asked = parser.parse_args()
    settings = ModelSettings(name=asked.model, device=asked.device, dtype=asked.dtype)
    chat = load(settings)
    if asked.shape:
        chat = shaped(chat, asked.shape)
    if asked.reorder:
        reorder(chat)
    size = sum(item.numel() for item in chat.net.parameters())
    said = f"{chat.name}, {size / 1e9:.2f}B parameters in {str(chat.net.dtype)[6:]}"
    print(f"{card(chat.device)}; {said}\n", flush=True)
    columns = ("work", "steerheal", "instead", "its rate", "ratio", "share of the bound")
    print("| " + " | ".join((*columns, "peak, MiB", "its peak, MiB")) + " |")
    print("|---" * 8 + "|", flush=True)
    draws = [Draw(prompt, seed=i) for i, prompt in enumerate(_many(asked.steps))]
    written = generate(chat, draws, SamplingSettings(tokens=asked.tokens))
    pairs = heal.training_pairs(chat, written)
    for piece in (
        lambda: sampled(chat, asked.rows, asked.tokens),
        lambda: healed(chat, pairs),
        lambda: read(chat, asked.vignettes, asked.think, asked.rollouts),
        lambda: likely(chat, asked.vignettes),
    ):
        one = piece()
        for _ in range(asked.repeats):
            one.ours.again(chat.device)
            if not asked.alone:
                one.theirs.again(chat.device)
        one.bounded(chat)
        print(one.row(), flush=True)
    if chat.device.type == "cpu":
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        print(f"\nThe process's peak, weights and the other ways included: {peak / 2**30:.1f} GiB")


def _many(steps: int) -> list[str]:
    known = find("love").prompts.train
    return [known[i % len(known)] for i in range(steps * heal.UNBARRED.rows)]


if __name__ == "__main__":
    main()
