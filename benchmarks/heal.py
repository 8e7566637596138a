"""Healing on the embedded model: completion tokens per second, against plain training loops.

One run, ratios on the same machine and data: a heal with a reverse-KL barrier, its reference
included; a loop at batch 1 that runs the reference anew and takes full log-softmaxes at every
step; and, without a barrier, a heal against transformers' Trainer with the same LoRA and the same
rows per step. On a GPU the model is in bfloat16, as `steerheal` loads it. The bound is the time
that the heal's own products take with nothing between them: every forward's, the backward of the
blocks from the band's start on, the adapters', and the head's.
Before that, in a process of its own, a heal of a tiny body under a very wide head: the peak above
its weights. `--memory` does only that.
Usage: python benchmarks/heal.py [--steps N] [--tokens N] [--model NAME] | --memory
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import psutil
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from steerheal.config import HealSettings, ModelSettings, SamplingSettings
from steerheal.heal.adapter import target_names, training
from steerheal.heal.train import heal_student, training_pairs
from steerheal.models.ends import Ends
from steerheal.models.generate import Draw, generate
from steerheal.models.hooks import hooked
from steerheal.models.load import load
from steerheal.models.model import ChatModel, band_layers
from steerheal.models.score import Pair, continuation_states, kl
from steerheal.personas import find
from steerheal.tables import AGGREGATES

SETTINGS = HealSettings(barrier="kl_rev", epochs=1, held_out=0.0, tau=0.0)
UNBARRED = HealSettings(barrier="none", epochs=1, held_out=0.0)
IGNORED = -100
WIDE, COMPLETIONS, LENGTH, LIMIT = 262_144, 48, 512, 2 << 30


def ours(chat: ChatModel, pairs: list[Pair]) -> float:
    """A heal with its reference; the share of padding."""
    reference = continuation_states(chat, pairs)
    return heal_student(chat, pairs, reference, SETTINGS).log.padding


def unbarred(chat: ChatModel, pairs: list[Pair]) -> None:
    """A heal without a barrier."""
    heal_student(chat, pairs, None, UNBARRED)


def plain(chat: ChatModel, pairs: list[Pair]) -> None:
    """The same objective one completion at a time, aggregated over each alone."""
    with training(chat, SETTINGS, seed=0) as model:
        free = [item for item in model.parameters() if item.requires_grad]
        adam = torch.optim.AdamW(free, lr=SETTINGS.lr, betas=(0.9, SETTINGS.beta2))
        for number, (prefix, rest) in enumerate(pairs, start=1):
            ids = torch.tensor([[*prefix, *rest]], device=chat.device)
            here, targets = slice(len(prefix) - 1, -1), ids[0, len(prefix) :]
            with torch.no_grad(), cast(Any, model).disable_adapter():
                log_q = chat.net(input_ids=ids).logits[0].float().log_softmax(-1)[here]
            with torch.enable_grad():
                log_p = chat.net(input_ids=ids).logits[0].float().log_softmax(-1)[here]
                ce = -log_p.gather(1, targets[:, None]).mean()
                barrier = AGGREGATES.find(SETTINGS.aggregate)(kl(log_p, log_q))
                ((ce + SETTINGS.lam * barrier) / SETTINGS.rows).backward()
            if number % SETTINGS.rows == 0 or number == len(pairs):
                nn.utils.clip_grad_norm_(free, SETTINGS.clip)
                adam.step()
                adam.zero_grad()


def collated(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Right-padded ids, labels and mask."""
    fills = {"input_ids": 0, "labels": IGNORED, "attention_mask": 0}
    return {
        name: pad_sequence([row[name] for row in rows], batch_first=True, padding_value=fill)
        for name, fill in fills.items()
    }


def theirs(chat: ChatModel, pairs: list[Pair]) -> None:
    """transformers' Trainer on the same pairs, with the same adapter, optimiser and batches."""
    rows = []
    for prefix, rest in pairs:
        ids = torch.tensor([*prefix, *rest])
        labels = torch.cat([torch.full((len(prefix),), IGNORED), ids[len(prefix) :]])
        rows.append({"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)})
    with training(chat, UNBARRED, seed=0) as model, tempfile.TemporaryDirectory() as folder:
        asked = TrainingArguments(
            output_dir=folder,
            num_train_epochs=UNBARRED.epochs,
            per_device_train_batch_size=UNBARRED.rows,
            learning_rate=UNBARRED.lr,
            warmup_steps=UNBARRED.warmup,
            lr_scheduler_type="cosine",
            adam_beta2=UNBARRED.beta2,
            max_grad_norm=UNBARRED.clip,
            use_cpu=chat.device.type == "cpu",
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = Trainer(model, asked, data_collator=collated, train_dataset=cast(Any, rows))
        trainer.remove_callback(PrinterCallback)
        trainer.train()


@contextmanager
def shapes(chat: ChatModel) -> Iterator[tuple[list[tuple[int, bool]], list[int]]]:
    """Collects every forward's positions, whether it trains, and how many positions get logits."""
    forwards: list[tuple[int, bool]] = []
    heads: list[int] = []
    width = chat.text_config.hidden_size

    def read(_module: nn.Module, inputs: Any, _output: Any) -> None:
        forwards.append((inputs[0].numel(), torch.is_grad_enabled()))

    def headed(_module: nn.Module, inputs: Any, _output: Any) -> None:
        heads.append(inputs[0].numel() // width)

    head = cast(nn.Module, chat.net.get_output_embeddings())
    with hooked({chat.net.get_input_embeddings(): read, head: headed}):
        yield forwards, heads


class Products:
    """The heal's matrix products on random numbers."""

    def __init__(self, chat: ChatModel) -> None:
        self.adapted = set(target_names(chat, SETTINGS))
        start = band_layers(len(chat.blocks), SETTINGS.band)[0]
        named = {id(module): name for name, module in chat.net.named_modules()}
        self.layers = [
            (item, named[id(item)] in self.adapted, number >= start)
            for number, block in enumerate(chat.blocks)
            for item in block.modules()
            if isinstance(item, nn.Linear)
        ]
        self.head = cast(nn.Linear, chat.net.get_output_embeddings())
        self._made: dict[tuple[torch.dtype, tuple[int, ...]], torch.Tensor] = {}

    def some(self, *size: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Numbers of this shape, the same ones every time, in the model's dtype or in another."""
        kind = dtype or self.head.weight.dtype
        if (kind, size) not in self._made:
            self._made[kind, size] = torch.randn(size, device=self.head.weight.device).to(kind)
        return self._made[kind, size]

    def block_products(self, count: int, trains: bool) -> None:
        """All blocks forward and, when training, backward to the band's start."""
        rank = SETTINGS.rank
        for layer, adapted, above in self.layers:
            x, g = self.some(count, layer.in_features), self.some(count, layer.out_features)
            layer(x)
            if trains and adapted:
                # The factors are float32 whatever the model is.
                x, back_in, down, up = (
                    self.some(*size, dtype=torch.float32)
                    for size in (x.shape, g.shape, (rank, x.shape[1]), (g.shape[1], rank))
                )
                low = x @ down.T
                _ = low @ up.T
                back = back_in @ up
                _ = back_in.T @ low, back.T @ x, back @ down
            if trains and above:
                _ = g @ layer.weight

    def head_products(self, count: int, trains: bool) -> None:
        """Logits of some positions, and of a heal's one gradient back for each."""
        self.head(self.some(count, self.head.in_features))
        if trains:
            _ = self.some(count, self.head.out_features) @ self.head.weight

    @torch.inference_mode()
    def seconds(
        self, forwards: list[tuple[int, bool]], heads: list[int], *, trains: bool = True
    ) -> float:
        """Time of all of them, once everything has been allocated; `trains` if a heal's."""

        def work() -> None:
            for item in forwards:
                self.block_products(*item)
            for count in heads:
                self.head_products(count, trains)

        for item in {*forwards}:
            self.block_products(*item)
        for count in {*heads}:
            self.head_products(count, trains)
        return timed(work)


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call, whatever it left to the GPU included, and nothing from before."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def speed(settings: ModelSettings, steps: int, tokens: int) -> None:
    """Prints the rates, their ratios, and the share of the bound."""
    chat, persona = load(settings), find("love")
    prompts = persona.prompts.train
    draws = [Draw(prompts[i % len(prompts)], seed=i) for i in range(steps * SETTINGS.rows)]
    pairs = training_pairs(chat, generate(chat, draws, SamplingSettings(tokens=tokens)))
    count = sum(len(rest) for _, rest in pairs)

    def said(what: str, seconds: float) -> None:
        print(f"{what + ':':40}{seconds:6.1f} s  {count / seconds:7.1f} tokens/s")

    for first in (ours, unbarred, theirs):
        first(chat, pairs[: SETTINGS.rows])
    paddings: list[float] = []
    with shapes(chat) as (forwards, heads):
        mine = timed(lambda: paddings.append(ours(chat, pairs)))
    loop = timed(lambda: plain(chat, pairs))
    without, trainer = (timed(lambda run=run: run(chat, pairs)) for run in (unbarred, theirs))
    bound = Products(chat).seconds(forwards, heads)
    print(
        f"{chat.name} on {chat.device.type} in {chat.net.dtype}: {steps} steps, {count} completion "
        f"tokens, padding {paddings[0]:.3f} of what is read"
    )
    said("heal with kl_rev, reference included", mine)
    said("plain loop with kl_rev, one row a time", loop)
    said("heal without a barrier", without)
    said("transformers' Trainer, no barrier", trainer)
    print(f"ratios: {loop / mine:.2f} with kl_rev, {trainer / without:.2f} without")
    print(f"share of the bound, kl_rev's own products: {bound / mine:.2f}")


def memory() -> int:
    """Prints the peak above the weights; 1 when it is above the limit."""
    config = LlamaConfig(
        vocab_size=WIDE, hidden_size=64, intermediate_size=128, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    net = LlamaForCausalLM(config).eval().requires_grad_(False)
    chat = ChatModel(
        net,
        cast(Any, None),
        "wide",
        "wide",
        origin="",
        system_role=False,
        template=cast(Any, None),
        ends=Ends(1, (1,), ""),
    )
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, WIDE, (COMPLETIONS, 16 + LENGTH), generator=random).tolist()
    pairs: list[Pair] = [(row[:16], row[16:]) for row in ids]
    before = psutil.Process().memory_info().rss
    ours(chat, pairs)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before
    whole = COMPLETIONS * LENGTH * WIDE * 4
    print(
        f"{COMPLETIONS} completions of {LENGTH} tokens, head of {WIDE}: peak {peak >> 20} MiB "
        f"above the weights (limit {LIMIT >> 20}; all logits at once: {whole >> 20})"
    )
    return int(peak > LIMIT)


def main() -> int:
    """Speed and memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--model", default=ModelSettings().name)
    parser.add_argument("--memory", action="store_true")
    asked = parser.parse_args()
    if asked.memory:
        return memory()
    # First, since a child's peak counts what its parent holds when it starts.
    code = subprocess.run([sys.executable, __file__, "--memory"], check=False).returncode
    speed(ModelSettings(name=asked.model), asked.steps, asked.tokens)
    return code


if __name__ == "__main__":
    sys.exit(main())
