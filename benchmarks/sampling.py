"""Steered sampling on the embedded model: tokens per second, against transformers' own generate.

One run, ratios on the same machine: 48 rows of mixed doses through the sampler; the same prompts
through `generate` at the same batch; a few rows one at a time through `generate` with a hook. The
bound is twofold: the rate of the largest product alone with its weights in the processor's cache,
and the time that the sampler's own products take when nothing else is run, each forward's in turn,
with the weights coming from memory as they must. Usage: python benchmarks/sampling.py [--tokens N]
"""

import argparse
import time
from collections.abc import Callable

import heal
import torch

from steerheal.config import ModelSettings, SamplingSettings, VectorSettings
from steerheal.models.batch import left_padded
from steerheal.models.chat import prompt_ids
from steerheal.models.generate import Draw, generate
from steerheal.models.load import load
from steerheal.models.model import ChatModel
from steerheal.personas import find
from steerheal.prompts import contexts
from steerheal.state.values import base, entered
from steerheal.state.vector import SteeringVector
from steerheal.steer.vector import extract

ROWS, ALONE = 48, 3
DOSES = (0.5, 0.75, 1.0)


def matrix_rate(rows: int, width: int, inner: int) -> float:
    """Float32 FLOP per second of the model's own largest product at this batch."""
    a, b = torch.randn(rows, width), torch.randn(width, inner)
    times = []
    for _ in range(30):
        start = time.perf_counter()
        _ = a @ b
        times.append(time.perf_counter() - start)
    return 2 * rows * width * inner / sorted(times)[len(times) // 2]


def timed(work: Callable[[], int]) -> tuple[int, float]:
    """Tokens and seconds of one call that returns how many tokens it made."""
    start = time.perf_counter()
    tokens = work()
    return tokens, time.perf_counter() - start


def ours(chat: ChatModel, vector: SteeringVector, prompts: list[str], tokens: int) -> int:
    """Mixed doses in one batch."""
    draws = [Draw(prompt, i % 3, i) for i, prompt in enumerate(prompts)]
    with entered(chat, [base().steered(vector, dose) for dose in DOSES]) as reader:
        made = generate(reader, draws, SamplingSettings(tokens=tokens, rows=len(draws)))
    return sum(len(item.tokens) for item in made)


@torch.no_grad()
def theirs(chat: ChatModel, vector: SteeringVector, prompts: list[str], tokens: int) -> int:
    """transformers' generate under one dose."""
    rows = [prompt_ids(chat, prompt) for prompt in prompts]
    ids, mask, _ = left_padded(rows, 0, chat.device)
    torch.manual_seed(0)
    with vector.applied(chat, DOSES[-1]):
        made = chat.net.generate(  # pyright: ignore[reportCallIssue]
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=tokens,
            do_sample=True,
            top_p=0.95,
            top_k=0,
            pad_token_id=0,
        )
    return int((made[:, ids.shape[1] :] != 0).sum())


def main() -> None:
    """Prints the rates and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=64)
    tokens = parser.parse_args().tokens
    chat, persona = load(ModelSettings(device="cpu")), find("love")
    vector = extract(chat, persona, contexts()[:8], VectorSettings())
    prompts = list(persona.prompts.train[:ROWS])
    ours(chat, vector, prompts[:4], 4)
    rates = {}
    for name, work in {
        f"steered sampler, {ROWS} rows, mixed doses": lambda: ours(chat, vector, prompts, tokens),
        f"generate with a hook, {ROWS} rows": lambda: theirs(chat, vector, prompts, tokens),
        "generate with a hook, one row at a time": lambda: sum(
            theirs(chat, vector, [prompt], tokens) for prompt in prompts[:ALONE]
        ),
    }.items():
        count, seconds = timed(work)
        rates[name] = count / seconds
        print(f"{name:44} {count:6d} tokens  {seconds:6.1f} s  {rates[name]:7.1f} tokens/s")
    first, batch, alone = rates.values()
    config = chat.text_config
    with heal.shapes(chat) as (read, headed):
        _, seconds = timed(lambda: ours(chat, vector, prompts, tokens))
    alone_share = heal.Products(chat).seconds(read, headed, trains=False) / seconds
    flops = 2 * sum(p.numel() for p in chat.net.parameters())
    bound = matrix_rate(ROWS, config.hidden_size, config.intermediate_size) / flops
    print(f"ratio to generate at the same batch: {first / batch:.2f}")
    print(f"ratio to one row at a time:          {first / alone:.2f}")
    print(f"share of the bound, weights in cache: {first / bound:.2f} of {bound:.0f} tokens/s")
    print(f"share of the bound, its own products: {alone_share:.2f}")


if __name__ == "__main__":
    main()
