"""Rows per second of the forced-choice instrument against the plain transformers way.

A row is one vignette read in both orders. The plain way: batches of 8 vignettes in file order, one
order at a time, `generate` with kept scores, then two forwards over the suffix and the prefill.
Both are timed in one process on the same vignettes, in turns; the best time of each counts. FLOP
are 2·parameters per token that went through the blocks, and the head where it was applied; the
rate they are held against is the best of this machine's float32 products in the same run.

    python benchmarks/forced_choice.py --vignettes 16 --think 64
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig

from steerheal.config import ModelSettings
from steerheal.measure import forced_choice, protocol, vignettes
from steerheal.measure.protocol import Protocol
from steerheal.measure.slot import slot_of
from steerheal.measure.vignettes import Vignette
from steerheal.models.batch import left_padded
from steerheal.models.chat import prompt_ids
from steerheal.models.hooks import hooked
from steerheal.models.load import load
from steerheal.models.model import ChatModel

PLAIN_ROWS = 8


@dataclass
class Work:
    """What went through the model, and how long it took."""

    tokens: int = 0
    heads: int = 0
    """Positions whose logits were made."""
    seconds: float = float("inf")

    def flop(self, chat: ChatModel) -> float:
        head = sum(p.numel() for p in _head(chat).parameters())
        blocks = sum(p.numel() for block in chat.blocks for p in block.parameters())
        return 2.0 * (self.tokens * blocks + self.heads * head)


@torch.no_grad()
def plain(chat: ChatModel, asked: Sequence[Vignette], wording: Protocol, think: int) -> Tensor:
    """Log-probabilities of the labels, [vignettes, orders, 7]."""
    slot = slot_of(chat, wording, think)
    frames = []
    for labels in (wording.labels, wording.labels[::-1]):
        logs = []
        for start in range(0, len(asked), PLAIN_ROWS):
            batch = asked[start : start + PLAIN_ROWS]
            prompts = [
                prompt_ids(chat, wording.turn(item.text, labels), prefill=wording.think_open)
                for item in batch
            ]
            read = _plain_batch(chat, prompts, slot.suffix, slot.prefill, think)
            logs.append(read[:, slot.answers])
        frames.append(torch.cat(logs))
    return torch.stack(frames, dim=1)


def _plain_batch(
    chat: ChatModel,
    prompts: Sequence[Sequence[int]],
    suffix: Sequence[int],
    prefill: Sequence[int],
    think: int,
) -> Tensor:
    ids, mask, _ = left_padded(prompts, chat.stop_ids()[0], chat.device)
    net: Any = chat.net
    settings = GenerationConfig(
        do_sample=False,
        min_new_tokens=think,
        max_new_tokens=think,
        eos_token_id=list(chat.stop_ids()),
        pad_token_id=chat.stop_ids()[0],
        output_scores=True,
        return_dict_in_generate=True,
    )
    out = net.generate(
        ids, attention_mask=mask, generation_config=settings, past_key_values=DynamicCache()
    )
    # The last think token is in the output, not in the cache.
    seen = torch.cat([mask, mask.new_ones(len(ids), think - 1)], dim=1)
    for piece in (suffix, prefill):
        rows = torch.tensor([list(piece)] * len(ids), device=chat.device)
        seen = torch.cat([seen, torch.ones_like(rows)], dim=1)
        done = net(rows, attention_mask=seen, past_key_values=out.past_key_values, use_cache=True)
    return done.logits[:, -1].float().log_softmax(-1)


def counted(chat: ChatModel, work: Work, run: Callable[[], object]) -> None:
    """Runs once; adds up what went through the model and keeps the best time."""
    work.tokens = work.heads = 0

    def tokens(_module: nn.Module, inputs: Any, _output: Any) -> None:
        work.tokens += inputs[0].numel()

    def heads(_module: nn.Module, inputs: Any, _output: Any) -> None:
        work.heads += inputs[0].shape[:-1].numel()

    with hooked({chat.net.get_input_embeddings(): tokens, _head(chat): heads}):
        start = time.perf_counter()
        run()
        work.seconds = min(work.seconds, time.perf_counter() - start)


def matmul_rate() -> float:
    """FLOP per second of large float32 products, by the faster of the two libraries in torch."""
    size = 1536
    left, right = torch.randn(size, size), torch.randn(size, size)
    ways: list[Callable[[], object]] = [lambda: torch.mm(left, right)]
    if torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(right, None)
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(left, packed, None, "none", [], ""))
    best = float("inf")
    for way in ways * 10:
        start = time.perf_counter()
        way()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _head(chat: ChatModel) -> nn.Module:
    head = chat.net.get_output_embeddings()
    assert isinstance(head, nn.Module), "a model without a head"
    return head


def main() -> None:
    """Prints one line per way, and how they compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--vignettes", type=int, default=16, help="bundled vignettes that are read")
    parser.add_argument("--think", type=int, default=64, help="think tokens per rollout")
    parser.add_argument("--rows", type=int, default=128, help="rollouts that are read together")
    parser.add_argument("--repeats", type=int, default=2, help="times each way is run")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    chat, wording = load(ModelSettings(device="cpu")), protocol.load()
    asked = vignettes.load("everyday")[: options.vignettes]
    rate, ways = matmul_rate(), {"plain": Work(), "steerheal": Work()}
    for _ in range(options.repeats):
        counted(chat, ways["plain"], lambda: plain(chat, asked, wording, options.think))
        counted(
            chat,
            ways["steerheal"],
            lambda: forced_choice.read(
                chat, asked, wording, think=options.think, rows=options.rows
            ),
        )
        rate = max(rate, matmul_rate())
    print(f"{chat.name}, {len(asked)} vignettes, {options.think} think tokens, float32 products "
          f"{rate / 1e9:.0f} GFLOP/s on {torch.get_num_threads()} threads")  # fmt: skip
    for name, work in ways.items():
        flop = work.flop(chat)
        print(
            f"{name:10} {len(asked) / work.seconds:6.3f} rows/s   {work.seconds:6.1f} s   "
            f"{flop / len(asked) / 1e9:6.1f} GFLOP/row   "
            f"{flop / rate / work.seconds:4.0%} of the arithmetic bound"
        )
    print(f"ratio {ways['plain'].seconds / ways['steerheal'].seconds:.2f}")


if __name__ == "__main__":
    main()
