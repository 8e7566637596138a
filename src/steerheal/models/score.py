"""Log-probabilities and divergences of given continuations, never holding [B, T, vocabulary].

A pair is a prefix and its continuation. States are what the logits of the positions that predict
the continuation's tokens are made of, one row per token: of the bare model its final hidden states.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerheal.models.batch import (
    by_length,
    launch_cost,
    out_of_memory,
    ran_out,
    right_padded,
    shrinking,
    token_budget,
)
from steerheal.models.cache import roomy_cache
from steerheal.models.decode import forward_rows, kinds_of, shared_in_groups
from steerheal.models.model import ChatModel
from steerheal.models.rows import Line, as_line
from steerheal.ranks import lent, merged, share_of

T = TypeVar("T")
Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids that were read, and those that follow."""
Reading = tuple[Sequence[int] | Line, Sequence[int]]
"""The same; a line is read as its state reads it, token ids as they are."""
LOGIT_BYTES = {"cpu": 24 << 20, "cuda": 512 << 20}
"""Size of the logits that are in memory at once. What the C library's allocator takes from the
system anew (32 MiB and more) costs as much to fault in as to compute."""
LEAST_CHUNK = 64


def expected(p: Float[Tensor, "*N V"], values: Float[Tensor, "*N V"]) -> Float[Tensor, "*N"]:
    """Σ_v p_v·x_v per row, where a token without probability counts for nothing: 0·ln 0 = 0.

    A head that masks tokens with −inf gives such tokens, and x is not finite there. A probability
    that float32 rounds to 0 is 0. Where p is above 0 the value stands, so that a KL to what has no
    probability there is +inf, and NaN stays NaN.
    """
    total = (p * values).sum(-1)
    if total.isfinite().all():  # a second pass over the vocabulary costs as much as the first
        return total
    return (p * values.masked_fill(p == 0, 0)).sum(-1)


def kl(log_p: Float[Tensor, "*N V"], log_q: Float[Tensor, "*N V"]) -> Float[Tensor, "*N"]:
    """KL(p‖q) per row in nats, from log-probabilities; +inf where q lacks what p has."""
    return expected(log_p.exp(), log_p - log_q)


def chunk_of(chat: ChatModel) -> int:
    """Positions whose logits are in memory at once."""
    room = LOGIT_BYTES.get(chat.device.type, LOGIT_BYTES["cpu"])
    return max(LEAST_CHUNK, room // (torch.float32.itemsize * chat.text_config.vocab_size))


def in_chunks(chat: ChatModel, count: int, work: Callable[[slice], T]) -> list[T]:
    """What `work` gives for one chunk of positions after another; smaller ones where memory ends.

    Args:
        chat: Whose vocabulary says how many positions are a chunk.
        count: Positions.
        work: Makes the logits of some positions and returns what is read of them. It changes
            nothing else, since it may be called on fewer of them after it has failed.

    Raises:
        torch.OutOfMemoryError: a single position does not fit.
    """
    found, start, size = list[T](), 0, chunk_of(chat)
    while start < count:
        here = slice(start, min(start + size, count))
        try:
            found.append(work(here))
            start = here.stop
            continue
        except RuntimeError as error:
            size = here.stop - start
            if size == 1 or not out_of_memory(error):
                raise
        # Not where the error is handled: it holds what the failed attempt had taken.
        size = (size + 1) // 2
        ran_out(size)
    return found


def hidden_after_shared(
    chat: ChatModel, rows: Sequence[Sequence[int] | Line], limit: int | None = None
) -> tuple[Float[Tensor, "N T D"], int]:
    """Final hidden states of a forward's rows after their common prefix, and its length.

    The rows are right-padded, parts of their states included. What those of one system prompt begin
    with is read once for every kind of row, and its cache repeated. Padding comes after a row's own
    tokens, so that causal attention needs no mask. At most `limit` tokens count as shared: the
    states of positions before it are not returned.
    """
    lines = [as_line(row).spread(chat.parts) for row in rows]
    flat, groups = forward_rows(chat, lines)
    acting = chat.acting(lines)
    start = shared_in_groups(flat, groups, limit, launch_cost(chat.device))
    cache = roomy_cache(chat) if start else None
    if cache is not None:
        firsts, kinds = kinds_of(groups, acting)
        prefix = torch.tensor([flat[i][:start] for i in firsts], device=chat.device)
        some = None if acting is None else acting.select(torch.tensor(firsts))
        chat.hidden(prefix, acting=some, past_key_values=cache, use_cache=True)
        cache.batch_select_indices(kinds.to(chat.device))
    rest = right_padded([row[start:] for row in flat], 0, chat.device)
    return chat.hidden(
        rest, acting=acting, past_key_values=cache, use_cache=cache is not None
    ), start


@torch.no_grad()
def continuation_states(
    chat: ChatModel,
    pairs: Sequence[Reading],
    progress: Callable[[int], None] = lambda _: None,
) -> list[Float[Tensor, "_ W"]]:
    """For every pair, what the logits that predict its continuation are made of, in order given.

    Args:
        chat: The model, or what a state's door gives.
        pairs: Prefixes and continuations; pairs in several states share batches.
        progress: Called with the number of pairs read since the last call.
    """
    states: list[Tensor] = [torch.empty(0)] * len(pairs)
    lines = [as_line(prefix).spread(chat.parts) for prefix, _ in pairs]
    shortest = min((len(part) for line in lines for part in line.parts), default=1)

    def work(batch: list[int]) -> None:
        # The continuation's last token predicts nothing that is asked for.
        read = [lines[i].then(pairs[i][1][:-1]) for i in batch]
        hidden, skipped = hidden_after_shared(chat, read, shortest - 1)
        for row, i in enumerate(batch):
            spans = []
            for part, prefix in enumerate(lines[i].parts):
                start = len(prefix) - 1 - skipped
                spans.append(hidden[part * len(batch) + row, start : start + len(pairs[i][1])])
            states[i] = chat.combined(torch.stack(spans))[0]
        progress(len(batch))

    whole = [line.then(rest) for line, (_, rest) in zip(lines, pairs, strict=True)]
    budget, launch = token_budget(chat.device) // chat.parts, launch_cost(chat.device)
    opening = shared_in_groups(*forward_rows(chat, whole), shortest - 1, launch) if whole else 0
    own = share_of(range(len(whole)))
    for batch in by_length([len(whole[i]) for i in own], budget, opening, launch):
        shrinking([own[i] for i in batch], work)
    found = merged({i: lent(states[i]) for i in own})
    return [found[i].to(chat.device) for i in range(len(whole))]


@torch.no_grad()
def chosen_logprobs(
    chat: ChatModel, states: Float[Tensor, "N D"], targets: Int[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Float32 log-probability of each target token under its state."""

    def chosen(here: slice) -> Tensor:
        return chat.logits(states[here]).log_softmax(-1).gather(1, targets[here, None])[:, 0]

    out = in_chunks(chat, len(states), chosen)
    return torch.cat(out) if out else torch.empty(0)


@torch.no_grad()
def all_logprobs(chat: ChatModel, states: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
    """Float32 log-probabilities of every token under every state, on the CPU."""

    def every(here: slice) -> Tensor:
        return chat.logits(states[here]).log_softmax(-1).cpu()

    return torch.cat(in_chunks(chat, len(states), every))


@torch.no_grad()
def label_logprobs(
    chat: ChatModel, states: Float[Tensor, "N D"], ids: Int[Tensor, " K"]
) -> Float[Tensor, "N K"]:
    """Float32 log-probabilities of the same tokens under every state."""

    def labels(here: slice) -> Tensor:
        return chat.logits(states[here]).log_softmax(-1)[:, ids]

    return torch.cat(in_chunks(chat, len(states), labels))


@torch.no_grad()
def token_logprobs(chat: ChatModel, pairs: Sequence[Reading]) -> list[Float[Tensor, " _"]]:
    """For every pair, the log-probability of each continuation token, on the CPU."""
    states = continuation_states(chat, pairs)
    sizes = [len(continuation) for _, continuation in pairs]
    targets = torch.tensor([t for _, rest in pairs for t in rest], dtype=torch.long)
    flat = chosen_logprobs(chat, torch.cat(states), targets.to(chat.device))
    return list(flat.cpu().split(sizes))


@torch.no_grad()
def kl_between(
    chat: ChatModel,
    p: Float[Tensor, "N W"],
    q: Float[Tensor, "N D"],
    writer: ChatModel | None = None,
) -> Float[Tensor, " N"]:
    """KL(p‖q) per position in nats, exact over the whole vocabulary.

    Args:
        chat: Whose states `q` are.
        p: States of `writer`, or of `chat` as well when none is given.
        q: States at the same positions.
        writer: What the other state's door gave.
    """
    head = (writer or chat).logits

    def between(here: slice) -> Tensor:
        return kl(head(p[here]).log_softmax(-1), chat.logits(q[here]).log_softmax(-1))

    out = in_chunks(chat, len(p), between)
    return torch.cat(out) if out else torch.empty(0)


class Readings(NamedTuple):
    """What a model says of given tokens, one number per position, in nats."""

    logprobs: Float[Tensor, " N"]
    entropies: Float[Tensor, " N"]
    kls: Float[Tensor, " N"] | None
    """KL(other‖this), where another's states were given."""


@torch.no_grad()
def readings(
    chat: ChatModel,
    states: Float[Tensor, "N D"],
    targets: Int[Tensor, " N"],
    others: Float[Tensor, "N W"] | None = None,
    writer: ChatModel | None = None,
) -> Readings:
    """Log-probability of each target, entropy, and divergence, from one look at the logits.

    Args:
        chat: Whose head turns states into logits.
        states: This model's final hidden states.
        targets: The token that each position predicts.
        others: Another's states at the same positions.
        writer: What that other state's door gave; `chat` has both when not given.
    """
    head = (writer or chat).logits

    def look(here: slice) -> Readings:
        log_q = chat.logits(states[here]).log_softmax(-1)
        return Readings(
            log_q.gather(1, targets[here, None])[:, 0],
            -expected(log_q.exp(), log_q),
            None if others is None else kl(head(others[here]).log_softmax(-1), log_q),
        )

    found = in_chunks(chat, len(states), look)
    if not found:
        return Readings(states.new_empty(0), states.new_empty(0), None)
    logs, entropies, kls = zip(*found, strict=True)
    return Readings(
        torch.cat(logs), torch.cat(entropies), None if others is None else torch.cat(kls)
    )
