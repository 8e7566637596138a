"""One small reading in every way that stages read, so that a model that cannot is refused first."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

from steerheal.errors import UserError, first_line
from steerheal.models.batch import SHARED
from steerheal.models.generate import prefilled, read_on
from steerheal.models.model import ChatModel
from steerheal.models.score import hidden_after_shared
from steerheal.models.weights import vocabulary

OPENING = SHARED + 4
"""Tokens that the trial's rows share; enough for their cache to be read once and repeated."""
APART = {torch.float32: 0.01, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Share of the states' norm by which two ways of reading may differ; a lost state moves more."""


@torch.no_grad()
def refuse_cache(chat: ChatModel) -> None:
    """Rows read together, after a shared opening or left-padded, must read as they do alone.

    Raises:
        UserError: the model's layers keep states that cannot be shared among rows or taken back.
    """
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary(chat.net), (OPENING + 16,), generator=random).tolist()
    opening = ids[:OPENING]
    rows = [opening + ids[OPENING : OPENING + 4], opening + ids[OPENING + 4 :]]
    reason = ""
    try:
        alone = [chat.hidden(torch.tensor([row], device=chat.device))[0] for row in rows]
        if not _alike(alone, _shared(chat, rows)) or not _alike(alone, _decoded(chat, rows)):
            reason = "rows read together differ from the same rows read alone"
    except Exception as error:  # noqa: BLE001  whatever a layer lacks comes up in its own words
        reason = f"reading rows together fails ({type(error).__name__}: {first_line(error)[:-1]})"
    if reason:
        raise UserError(
            f"{chat.name} ({type(chat.net).__name__}) is not supported: {_kept(chat) or reason}. "
            "Use a model whose layers all attend through keys and values."
        )


def _shared(chat: ChatModel, rows: Sequence[list[int]]) -> list[Tensor]:
    """The rows' states after their opening, which is read once."""
    hidden, start = hidden_after_shared(chat, rows)
    return [hidden[i, : len(row) - start] for i, row in enumerate(rows)]


def _decoded(chat: ChatModel, rows: Sequence[list[int]]) -> list[Tensor]:
    """The states of the rows' last two tokens, as sampling reads them: left-padded, one by one."""
    read = prefilled(chat, [row[:-1] for row in rows])
    last = torch.tensor([[row[-1]] for row in rows], device=chat.device)
    mask = torch.cat([read.mask, torch.ones_like(last)], dim=1)
    step = read_on(chat, last, mask, read.cache, read.positions[:, -1:] + 1)
    return list(torch.cat([read.hidden[:, -1:], step], dim=1))


def _alike(alone: Sequence[Tensor], together: Sequence[Tensor]) -> bool:
    """Whether the last states of rows agree, as far as the precision goes."""
    for one, other in zip(alone, together, strict=True):
        true, found = one[-len(other) :].float(), other.float()
        limit = APART.get(one.dtype, 0.1)
        if not bool(((true - found).norm(dim=-1) <= limit * true.norm(dim=-1)).all()):
            return False
    return True


def _kept(chat: ChatModel) -> str:
    """Which layers keep something else than keys and values, for the message."""
    layers = DynamicCache(config=chat.net.config).layers
    other = [
        i
        for i, layer in enumerate(layers)
        if isinstance(layer, LinearAttentionCacheLayerMixin) or not isinstance(layer, DynamicLayer)
    ]
    if not other:
        return ""
    types = getattr(chat.text_config, "layer_types", None) or []
    names = ", ".join(sorted({types[i] for i in other if i < len(types)}))
    kind = f" ({names})" if names else ""
    return (
        f"{len(other)} of its {len(layers)} layers keep a running state{kind}, which rows that "
        "share a prompt cannot share"
    )
