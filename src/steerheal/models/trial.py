"""One small reading in every way that stages read, so that a model that cannot is refused first."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

from steerheal.errors import UserError, first_line
from steerheal.models.batch import SHARED
from steerheal.models.cache import slides
from steerheal.models.decode import Decoding
from steerheal.models.model import ChatModel
from steerheal.models.rows import Line
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
    long, short = opening + ids[OPENING + 4 :], opening + ids[OPENING : OPENING + 4]
    reason = ""
    try:
        alone = chat.hidden(torch.tensor([short], device=chat.device))[0]
        # Sampling shares an opening too, but not with a window that slides.
        ways = [_decoded, _shared] if slides(chat) else [_decoded]
        if not all(_alike(alone, read(chat, [long, short])) for read in ways):
            reason = "rows read together differ from the same rows read alone"
    except Exception as error:  # noqa: BLE001  whatever a layer lacks comes up in its own words
        reason = f"reading rows together fails ({type(error).__name__}: {first_line(error)[:-1]})"
    if reason:
        raise UserError(
            f"{chat.name} ({type(chat.net).__name__}) is not supported: {_kept(chat) or reason}. "
            "Use a model whose layers all attend through keys and values."
        )


def _shared(chat: ChatModel, rows: Sequence[list[int]]) -> Tensor:
    """The last row's states after the opening, which is read once."""
    hidden, start = hidden_after_shared(chat, rows)
    return hidden[-1, : len(rows[-1]) - start]


def _decoded(chat: ChatModel, rows: Sequence[list[int]]) -> Tensor:
    """The last row's last two states, as sampling reads them: left-padded, then one more token."""
    batch = Decoding(chat, [Line.of(row[:-1]) for row in rows])
    start = batch.start()
    step = batch.on(torch.tensor([[row[-1]] for row in rows], device=chat.device))
    return torch.cat([start[-1, -1:], step[-1]])


def _alike(alone: Tensor, together: Tensor) -> bool:
    """Whether the last states of a row agree, as far as the precision goes."""
    true, found = alone[-len(together) :].float(), together.float()
    limit = APART.get(alone.dtype, 0.1)
    return bool(((true - found).norm(dim=-1) <= limit * true.norm(dim=-1)).all())


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
