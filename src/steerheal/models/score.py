"""Log-probabilities and divergences of given continuations, never holding [B, T, vocabulary].

A pair is a prefix and its continuation, both token ids. States are final hidden states at the
positions that predict the continuation's tokens, one row per token.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerheal.models.batch import (
    by_length,
    levels_of,
    right_padded,
    shared_prefix,
    shrinking,
    token_budget,
)
from steerheal.models.cache import roomy_cache
from steerheal.models.hooks import Dosed, at
from steerheal.models.model import ChatModel

Pair = tuple[Sequence[int], Sequence[int]]
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


def hidden_after_shared(
    chat: ChatModel,
    rows: Sequence[Sequence[int]],
    limit: int | None = None,
    *,
    doses: Float[Tensor, " B"] | None = None,
    handle: Dosed | None = None,
) -> tuple[Float[Tensor, "B T D"], int]:
    """Final hidden states of right-padded rows after their common prefix, and its length.

    The prefix (a system prompt, worked examples) is read once and its cache repeated. Padding comes
    after a row's own tokens, so that causal attention needs no mask. At most `limit` tokens
    count as shared: the states of positions before it are not returned. With a handle every row
    has its own dose, and the prefix is read once per distinct dose.
    """
    assert (doses is None) == (handle is None), "doses go with the handle that sets them"
    start = shared_prefix(rows, limit)
    cache = roomy_cache(chat) if start else None
    if cache is not None:
        distinct, each = levels_of(doses, len(rows), chat.device)
        prefix = torch.tensor([list(rows[0][:start])] * len(distinct), device=chat.device)
        with at(handle, distinct):
            chat.hidden(prefix, past_key_values=cache, use_cache=True)
        cache.batch_select_indices(each)
    rest = right_padded([row[start:] for row in rows], 0, chat.device)
    with at(handle, doses):
        return chat.hidden(rest, past_key_values=cache, use_cache=cache is not None), start


@torch.no_grad()
def continuation_states(
    chat: ChatModel,
    pairs: Sequence[Pair],
    *,
    doses: Sequence[float] | None = None,
    handle: Dosed | None = None,
) -> list[Float[Tensor, "_ D"]]:
    """For every pair, the states that predict its continuation, in the order given.

    Args:
        chat: The model, possibly inside `adding` or `folded`.
        pairs: Prefixes and continuations.
        doses: One per pair, when they differ; pairs of several doses share batches.
        handle: What sets them; it is left as it was.
    """
    states: list[Tensor] = [torch.empty(0)] * len(pairs)
    rows = [[*prefix, *continuation] for prefix, continuation in pairs]
    shortest = min((len(prefix) for prefix, _ in pairs), default=1)
    levels = None if doses is None else torch.tensor(list(doses), device=chat.device)

    def work(batch: list[int]) -> None:
        # The continuation's last token predicts nothing that is asked for.
        hidden, skipped = hidden_after_shared(
            chat,
            [rows[i][:-1] for i in batch],
            shortest - 1,
            doses=None if levels is None else levels[batch],
            handle=handle,
        )
        for row, i in enumerate(batch):
            prefix, continuation = pairs[i]
            start = len(prefix) - 1 - skipped
            states[i] = hidden[row, start : start + len(continuation)].clone()

    opening = shared_prefix(rows, shortest - 1)
    for batch in by_length([len(row) for row in rows], token_budget(chat.device), opening):
        shrinking(batch, work)
    return states


@torch.no_grad()
def chosen_logprobs(
    chat: ChatModel, states: Float[Tensor, "N D"], targets: Int[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Float32 log-probability of each target token under its state."""
    chunk = chunk_of(chat)
    out = [
        chat.logits(part).log_softmax(-1).gather(1, target[:, None])[:, 0]
        for part, target in zip(states.split(chunk), targets.split(chunk), strict=True)
    ]
    return torch.cat(out) if out else torch.empty(0)


@torch.no_grad()
def label_logprobs(
    chat: ChatModel, states: Float[Tensor, "N D"], ids: Int[Tensor, " K"]
) -> Float[Tensor, "N K"]:
    """Float32 log-probabilities of the same tokens under every state."""
    chunk = chunk_of(chat)
    return torch.cat([chat.logits(part).log_softmax(-1)[:, ids] for part in states.split(chunk)])


@torch.no_grad()
def token_logprobs(chat: ChatModel, pairs: Sequence[Pair]) -> list[Float[Tensor, " _"]]:
    """For every pair, the log-probability of each continuation token, on the CPU."""
    states = continuation_states(chat, pairs)
    sizes = [len(continuation) for _, continuation in pairs]
    targets = torch.tensor([t for _, rest in pairs for t in rest], dtype=torch.long)
    flat = chosen_logprobs(chat, torch.cat(states), targets.to(chat.device))
    return list(flat.cpu().split(sizes))


@torch.no_grad()
def kl_between(
    chat: ChatModel, p: Float[Tensor, "N D"], q: Float[Tensor, "N D"]
) -> Float[Tensor, " N"]:
    """KL(p‖q) per position in nats, exact over the whole vocabulary, through the shared head."""
    out, chunk = [], chunk_of(chat)
    for ours, theirs in zip(p.split(chunk), q.split(chunk), strict=True):
        out.append(kl(chat.logits(ours).log_softmax(-1), chat.logits(theirs).log_softmax(-1)))
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
    others: Float[Tensor, "N D"] | None = None,
) -> Readings:
    """Log-probability of each target, entropy, and divergence, from one look at the logits.

    Args:
        chat: Whose head turns states into logits.
        states: This model's final hidden states.
        targets: The token that each position predicts.
        others: Another's final hidden states at the same positions.
    """
    chunk = chunk_of(chat)
    columns: list[list[Tensor]] = [[], [], []]
    theirs = [None] * len(states) if others is None else others.split(chunk)
    for part, target, other in zip(states.split(chunk), targets.split(chunk), theirs, strict=False):
        log_q = chat.logits(part).log_softmax(-1)
        columns[0].append(log_q.gather(1, target[:, None])[:, 0])
        columns[1].append(-expected(log_q.exp(), log_q))
        if other is not None:
            columns[2].append(kl(chat.logits(other).log_softmax(-1), log_q))
    logs, entropies, kls = (torch.cat(column) if column else None for column in columns)
    empty = states.new_empty(0)
    return Readings(empty if logs is None else logs, empty if entropies is None else entropies, kls)
