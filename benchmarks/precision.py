"""What bfloat16 does to readings: base and steered model in float32 and in bfloat16, side by side.

Forced choice without thinking on bundled vignettes, and the free answers' trait on text that the
float32 base wrote. For every reading its change under the vector, in both precisions, and how far
apart the two changes and the two bases are, with intervals over vignettes or answers. The vector is
extracted once, in float32.

    python benchmarks/precision.py --model NAME [--persona love] [--dose 2] [--per-foundation 2]
"""

import argparse
import math
import time
from collections.abc import Sequence

import numpy as np
from scipy import stats

from steerheal.config import ModelSettings, SamplingSettings, VectorSettings
from steerheal.measure import forced_choice, protocol, vignettes
from steerheal.models.chat import prompt_ids
from steerheal.models.generate import Draw, generate
from steerheal.models.load import load
from steerheal.models.model import ChatModel
from steerheal.models.score import token_logprobs
from steerheal.personas import Persona, find
from steerheal.prompts import contexts
from steerheal.records import FOUNDATIONS, Completion
from steerheal.state.values import base, entered
from steerheal.state.vector import SteeringVector
from steerheal.steer.vector import extract

CONTEXTS, ANSWERS, TOKENS = 16, 12, 32
Units = dict[str, list[float]]
"""Every reading's value per vignette or answer."""


def read(
    chat: ChatModel, asked: Sequence[vignettes.Vignette], persona: Persona, texts: list[Completion]
) -> Units:
    """The readings of the state that `chat` is in."""
    rows = forced_choice.read(chat, asked, protocol.load(), think=0).rows
    place = FOUNDATIONS.index(persona.axis.foundation)

    def likely(system: str) -> list[float]:
        pairs = [(prompt_ids(chat, t.prompt, system=system), list(t.tokens)) for t in texts]
        return [float(logs.mean()) for logs in token_logprobs(chat, pairs)]

    poles = zip(likely(persona.positive), likely(persona.negative), strict=True)
    return {
        f"ln p({persona.axis.foundation})": [math.log(row.p[place]) for row in rows],
        "answer mass": [row.p_ans_any for row in rows],
        "log-odds of the answers, nats/token": [plus - minus for plus, minus in poles],
    }


def interval(values: Sequence[float]) -> str:
    """Mean and 95 % t-interval."""
    mean, error = float(np.mean(values)), float(stats.sem(values))
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return f"{mean:+.4f} [{mean - reach:+.4f}, {mean + reach:+.4f}]"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="")
    parser.add_argument("--persona", default="love")
    parser.add_argument("--dose", type=float, default=2.0)
    parser.add_argument("--per-foundation", type=int, default=2)
    asked = parser.parse_args()
    persona = find(asked.persona)
    known = vignettes.stratified(vignettes.load("everyday"), asked.per_foundation)
    vector: SteeringVector | None = None
    texts: list[Completion] = []
    found: dict[str, tuple[Units, Units]] = {}
    for dtype in ("float32", "bfloat16"):
        chat = load(ModelSettings(name=asked.model, dtype=dtype, device="cpu"))
        if vector is None:
            vector = extract(chat, persona, contexts()[:CONTEXTS], VectorSettings())
            draws = [Draw(prompt, seed=i) for i, prompt in enumerate(persona.prompts.train)]
            texts = generate(chat, draws[:ANSWERS], SamplingSettings(tokens=TOKENS))
        start = time.perf_counter()
        states = []
        for state in (base(), base().steered(vector, asked.dose)):
            with entered(chat, [state]) as reader:
                states.append(read(reader, known, persona, texts))
        found[dtype] = (states[0], states[1])
        print(f"{chat.name} in {dtype}: {time.perf_counter() - start:.0f} s", flush=True)
        del chat
    print("| reading | change in float32 | change in bfloat16 | apart | base apart |")
    print("|---|---|---|---|---|")
    (plain, pushed), (other, moved) = found["float32"], found["bfloat16"]
    for name in plain:
        one = np.subtract(pushed[name], plain[name])
        two = np.subtract(moved[name], other[name])
        apart, first = (
            interval(list(two - one)),
            interval(list(np.subtract(other[name], plain[name]))),
        )
        print(f"| {name} | {interval(list(one))} | {interval(list(two))} | {apart} | {first} |")


if __name__ == "__main__":
    main()
