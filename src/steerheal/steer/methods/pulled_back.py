"""v_ℓ = c · mean over contexts x of J(x)ᵀ m_{ℓ+k}, with m the mean difference k blocks later.

J(x) is the Jacobian of the state after block ℓ+k, at the last token of x without a system prompt,
by what is added to every position after block ℓ. So v is the push whose effect k blocks later grows
fastest along what separates the poles there. c gives it the length of m_ℓ, so that a dose means
about the same; without blocks between, v is m_ℓ itself.

Source: the chain rule, applied to the mean difference (Panickssery et al. 2023, arXiv:2312.06681).
Foldable: a bias on the block's output.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from steerheal.models.batch import by_length, right_padded, shrinking, token_budget
from steerheal.models.hooks import adding_to_rows, recording
from steerheal.steer.methods import mean_difference
from steerheal.steer.methods.method import Method
from steerheal.steer.states import Source

CONTEXTS = 32
"""Most contexts that the Jacobian is averaged over."""
WIDTH = 4
"""Share of a batch without gradients that fits with them, as one over it."""


def directions(source: Source) -> dict[int, Float[Tensor, " D"]]:
    """The later mean differences, each pulled back to its block."""
    last = len(source.chat.blocks) - 1
    later = {layer: min(layer + source.settings.pull, last) for layer in source.layers}
    both = sorted({*later, *later.values()})
    means = mean_difference.directions(replace(source, layers=both))
    rows = source.prompts()[:CONTEXTS]
    total = {layer: torch.zeros_like(means[layer]) for layer in source.layers}

    def work(batch: list[int]) -> None:
        for layer, one in _pulled(source, [rows[i] for i in batch], later, means).items():
            total[layer] = total[layer] + one
        source.progress(len(batch))

    for batch in by_length([len(row) for row in rows], token_budget(source.chat.device) // WIDTH):
        shrinking(batch, work)
    return {layer: _as_long(one / len(rows), means[layer]) for layer, one in total.items()}


@torch.enable_grad()
def _pulled(
    source: Source,
    rows: list[list[int]],
    later: dict[int, int],
    means: dict[int, Float[Tensor, " D"]],
) -> dict[int, Float[Tensor, " D"]]:
    """Sum over rows of Jᵀ m, per block."""
    chat = source.chat
    ends = torch.tensor([len(row) - 1 for row in rows], device=chat.device)
    nothing = {
        layer: torch.zeros(len(rows), len(means[layer]), device=chat.device, requires_grad=True)
        for layer in later
    }
    with adding_to_rows(chat, nothing), recording(chat, sorted(set(later.values()))) as seen:
        chat.hidden(right_padded(rows, 0, chat.device), use_cache=False)
    found = {}
    for layer, reach in later.items():
        state = seen[reach][torch.arange(len(rows), device=chat.device), ends].float()
        along = (state @ means[reach].to(chat.device)).sum()
        (pulled,) = torch.autograd.grad(along, nothing[layer], retain_graph=True)
        found[layer] = pulled.sum(0).float().cpu()
    return found


def _as_long(direction: Float[Tensor, " D"], like: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
    return torch.nn.functional.normalize(direction, dim=0) * like.norm()


METHOD = Method(directions, extra=lambda contexts: min(CONTEXTS, contexts))
