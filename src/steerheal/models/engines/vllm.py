"""Sampling by vLLM, which knows no hooks: states as checkpoints and LoRA requests.

A vector at a dose is the bias of Llama's MLPs in a checkpoint that vLLM loads, so that every dose
and every vector is a load of its own; the history is an adapter that goes with the request. What
was written is then read by the model as it is loaded here, where the state behind a token is asked
for. vLLM's seeds give other text than ours, and it does not say where logits are not finite.

This was held against a stand-in with vLLM's types; vLLM itself has not been run.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from steerheal import ranks
from steerheal.config import PushSettings, RunConfig
from steerheal.errors import UserError
from steerheal.extras import refuse_absent
from steerheal.models.engines.biases import SWITCH, refuse_unlike, write_biased
from steerheal.models.engines.engine import Engine, Order, unwatched
from steerheal.models.hub import folder_of
from steerheal.models.model import ChatModel
from steerheal.models.push import Row
from steerheal.models.score import continuation_states
from steerheal.models.unhooked import Factored, Unhooked

NAME = "vllm"
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's max_lora_rank takes."""
SHARE = 0.4
"""Share of the device's memory that it takes; the model here needs the rest."""
SHORTEST = 2048
"""Tokens that a row may come to, at least: asking for more loads it anew."""
ADVICE = "Use --engine transformers."


def room_for(rank: int) -> int:
    """The least rank that it takes an adapter of this rank in; 0 where there is none."""
    return next((known for known in RANKS if known >= rank), 0)


def refuse(config: RunConfig) -> None:
    """Looks whether it could write a run with these settings.

    Raises:
        UserError: it is not installed, or could not hold the model or the states.
    """
    refuse_absent(NAME, "--engine vllm")
    name = config.model.name
    _refuse_weights(
        whole=config.model.quantize == "none",
        file=not name or Path(name).expanduser().is_file(),  # empty is the embedded one
    )
    _refuse_push(config.push)
    _refuse_several(ranks.launched())


def refuse_model(chat: ChatModel) -> None:
    """Looks whether a vector can be written into the model's checkpoint.

    Raises:
        UserError: it is of a family of which that is not known.
    """
    config: Any = chat.net.config
    refuse_unlike(config.model_type, biased=bool(getattr(config, SWITCH, False)))


def write(chat: ChatModel, order: Order) -> list[Row]:
    """The rows; those that need the same checkpoint together, a load for each.

    Raises:
        UserError: a state, a model or a way to write that it cannot have.
    """
    refuse_absent(NAME, "--engine vllm")
    _refuse_weights(whole=not chat.quantised, file=bool(chat.origin))
    _refuse_push(order.push)
    _refuse_several(ranks.world())
    assert order.watch is unwatched, "vLLM's rows cannot be watched"
    states = {line.state: chat.unhooked(line.state) for line in order.lines}
    rows = [order.row(i) for i in range(len(order.lines))]
    groups: dict[str, list[int]] = {}
    for i, line in enumerate(order.lines):
        groups.setdefault(states[line.state].pushed, []).append(i)
    for some in groups.values():
        said = _written(chat, order, some, [states[order.lines[i].state] for i in some])
        for i, tokens in zip(some, said, strict=True):
            rows[i].tokens = tokens
            rows[i].doses = [rows[i].dose] * len(tokens)
        order.progress(len(some))
    if order.keep_states:
        pairs = [(row.line, row.tokens) for row in rows]
        for row, read in zip(rows, continuation_states(chat, pairs), strict=True):
            row.states = list(read)
    return rows


def _written(
    chat: ChatModel, order: Order, some: Sequence[int], states: Sequence[Unhooked]
) -> list[list[int]]:
    """Tokens of some of the rows, whose states differ by their adapters alone."""
    vllm: Any = importlib.import_module("vllm")
    settings, adapters = order.settings, [state.adapter for state in states]
    rank = max((adapter.rank for adapter in adapters if adapter is not None), default=0)
    _loaded.load(chat, states[0], rank, order.longest)
    params = [
        vllm.SamplingParams(
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k or -1,
            max_tokens=settings.tokens,
            seed=order.seeds[i],
            stop_token_ids=list(chat.stop_ids()),
            detokenize=False,
        )
        for i in some
    ]
    found = _loaded.llm.generate(
        [{"prompt_token_ids": list(order.lines[i].parts[0])} for i in some],
        params,
        use_tqdm=False,
        lora_request=[_loaded.request(adapter) for adapter in adapters] if rank else None,
    )
    return [list(one.outputs[0].token_ids) for one in found]


class _Wanted(NamedTuple):
    """What is loaded, or has to be."""

    model: str
    """The model's fingerprint."""
    pushed: str
    rank: int
    length: int


class _Loaded:
    """The last load of vLLM: of all that a process asks for, most is of the same checkpoint."""

    def __init__(self) -> None:
        self.llm: Any = None
        self._has: _Wanted | None = None
        self._work: TemporaryDirectory[str] | None = None
        self._requests: dict[str, Any] = {}

    def load(self, chat: ChatModel, state: Unhooked, rank: int, length: int) -> None:
        """Has vLLM hold the model with the state's biases, with room for adapters and rows."""
        room = room_for(rank) if rank else 0
        if rank and not room:
            raise UserError(
                f"vLLM takes adapters of rank {RANKS[-1]} at most, and the history has {rank}. "
                f"{ADVICE}"
            )
        has = self._has
        if (
            has is not None
            and has[:2] == (chat.fingerprint, state.pushed)
            and has.rank >= room
            and has.length >= length
        ):
            return
        self.forget()
        self._work = TemporaryDirectory(prefix="steerheal-vllm-")
        self._has = _Wanted(chat.fingerprint, state.pushed, room, self._longest(chat, length))
        vllm: Any = importlib.import_module("vllm")
        lora = {"enable_lora": True, "max_lora_rank": room} if room else {}
        self.llm = vllm.LLM(
            model=str(self._checkpoint(chat, state)),
            dtype=str(chat.net.dtype).removeprefix("torch."),
            max_model_len=self._has.length,
            gpu_memory_utilization=SHARE,
            skip_tokenizer_init=True,
            **lora,
        )

    def request(self, adapter: Factored | None) -> Any:
        """What goes with a row for its adapter; None without one."""
        if adapter is None:
            return None
        if adapter.key not in self._requests:
            assert self._work is not None, "nothing is loaded"
            folder = Path(self._work.name) / adapter.key
            adapter.save(folder)
            kind = importlib.import_module("vllm.lora.request").LoRARequest
            number = len(self._requests) + 1
            self._requests[adapter.key] = kind(adapter.key, number, str(folder))
        return self._requests[adapter.key]

    def forget(self) -> None:
        """Gives its memory back, as far as vLLM does."""
        self.llm, self._has, self._requests = None, None, {}
        if self._work is not None:
            self._work.cleanup()
            self._work = None

    def _checkpoint(self, chat: ChatModel, state: Unhooked) -> Path:
        config: Any = chat.net.config
        source = folder_of(config.name_or_path, getattr(config, "_commit_hash", None))
        if not state.biases:
            return source
        assert self._work is not None, "a folder is made first"
        out = Path(self._work.name) / "checkpoint"
        out.mkdir()
        write_biased(source, out, state.biases, chat.net.dtype)
        return out

    @staticmethod
    def _longest(chat: ChatModel, length: int) -> int:
        whole = max(SHORTEST, 1 << (length - 1).bit_length())
        most = chat.positions()
        return whole if most is None else max(length, min(whole, most))


_loaded = _Loaded()


def _refuse_weights(*, whole: bool, file: bool) -> None:
    if file or not whole:
        what = "a GGUF file (the embedded model is one)" if whole else "quantised weights"
        raise UserError(
            f"--engine vllm reads a model's folder, and would write with other weights than those "
            f"of {what}. Name a folder or hub id with --model, or use --engine transformers."
        )


def _refuse_push(push: PushSettings) -> None:
    if push != PushSettings():
        raise UserError(
            "--engine vllm writes at a constant dose, in the prompt as well: it has no decay, no "
            "KL budget and does not take tokens back (push.prompt, push.decay, push.kl_budget, "
            f"push.backtrack). {ADVICE}"
        )


def _refuse_several(count: int) -> None:
    if count > 1:
        raise UserError(f"--engine vllm writes in one process, and the run has {count}. {ADVICE}")


ENGINE = Engine(write, refuse, refuse_model, hooks=False, packages=(NAME,))
