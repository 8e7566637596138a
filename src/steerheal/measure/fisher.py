"""The Fisher cosine: how much of what a state changes serves the trait, with nothing sampled of it.

At positions that the base p₀ wrote, over the whole vocabulary, with expectations under p₀:
    ℓ = ln p − ln p₀, centred            p the state
    r = mean over wordings of ln p₀(· | s⁺) − ln p₀(· | s⁻), centred
    cos = E₀[ℓ·r] / √(E₀[ℓ²]·E₀[r²])
For a small change the trait gained is E₀[ℓ·r] and the KL is E₀[ℓ²]/2, so that trait/√KL is
cos·a* with a* = √(2·E₀[r²]), which no small change exceeds. Where the rewards of an answer's T
tokens are independent that is √(2·T·Var(R/T)), R their sum. Intervals are the jackknife's over
answers.

Source: the local limit of Paes et al. 2026, arXiv:2605.07105, in the Fisher metric.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from steerheal.measure import free
from steerheal.measure.stats import Floats, Statistic, jackknife
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states, expected, in_chunks
from steerheal.personas import HALVES, Half, Persona
from steerheal.records import Completion, Fisher, Reading
from steerheal.state.values import State, base, entered

Sides = tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]]
"""Final states under the positive and under the negative pole."""
COLUMNS = (
    "tokens", "change", "kl", *(f"{what}-{of}" for of in HALVES for what in ("both", "reward")),
    "gained",
)  # fmt: skip
"""What is summed over an answer's positions; the gain is that of the held-out reward."""


@dataclass(frozen=True)
class Ground:
    """Text that the base wrote, and what the base makes of it by itself and under every pole."""

    texts: Sequence[Completion]
    own: Float[Tensor, "N D"]
    """Final states, the positions of all texts one after another."""
    poles: Mapping[Half, Sequence[Sides]]
    """Per wording."""

    def to(self, device: torch.device) -> "Ground":
        """The same on a device."""
        poles: dict[Half, Sequence[Sides]] = {
            half: [(up.to(device), down.to(device)) for up, down in sides]
            for half, sides in self.poles.items()
        }
        return Ground(self.texts, self.own.to(device), poles)


@torch.no_grad()
def ground(
    chat: ChatModel, persona: Persona, texts: Sequence[Completion], wordings: int | None = None
) -> Ground:
    """What every state is compared with.

    Args:
        chat: The base, in no state.
        persona: Whose paraphrases are the rewards; the poles are, where it has none.
        texts: What the base wrote; empty ones are left out.
        wordings: How many paraphrases of each half are the reward; all when not given.
    """
    said = [text for text in texts if text.tokens]
    own = torch.cat(continuation_states(chat, free.answer_pairs(chat, said)))
    poles: dict[Half, list[Sides]] = {half: [] for half in HALVES}
    for half in HALVES:
        for pair in persona.pairs(half)[:wordings]:
            sides = [base().prompted(text) for text in (pair.positive, pair.negative)]
            with entered(chat, sides) as reader:
                read = [row for pole in (0, 1) for row in free.answer_pairs(reader, said, pole)]
                up, down = torch.cat(continuation_states(reader, read)).chunk(2)
            poles[half].append((up, down))
    return Ground(said, own, poles)


@torch.no_grad()
def fisher(
    chat: ChatModel,
    ground: Ground,
    states: Sequence[State],
    progress: Callable[[int], None] = lambda _: None,
) -> list[Fisher]:
    """Every state's cosine with the rewards, in the order given.

    The logits of a few positions are in memory at once, the final states of all.

    Args:
        chat: The base, in no state.
        ground: Its text.
        states: What is compared: a vector at a small dose, a system prompt, an adapter.
        progress: Called with the number of states read since the last call.
    """
    shifted = []
    for state in states:
        with state.entered(chat) as reader:
            pairs = free.answer_pairs(reader, ground.texts)
            shifted.append((reader, torch.cat(continuation_states(reader, pairs))))
        progress(1)
    owner = torch.repeat_interleave(torch.tensor([len(text.tokens) for text in ground.texts]))
    every = torch.arange(len(ground.own))

    def look(here: slice) -> tuple[Tensor, list[Tensor]]:
        rows = every[here]
        log_p = chat.logits(ground.own[rows]).log_softmax(-1)
        p = log_p.exp()
        rewards = [reward(chat, p, ground.poles[half], rows) for half in HALVES]
        return owner[rows], [
            _sums(p, log_p, reader.logits(there[rows]).log_softmax(-1), rewards).cpu().double()
            for reader, there in shifted
        ]

    sums = torch.zeros(len(states), len(ground.texts), len(COLUMNS), dtype=torch.float64)
    for owners, parts in in_chunks(chat, len(every), look):
        for one, part in zip(sums, parts, strict=True):
            one.index_add_(0, owners, part)
    return [_read(one.numpy()) for one in sums]


@torch.no_grad()
def reward(
    chat: ChatModel, p: Float[Tensor, "N V"], poles: Sequence[Sides], rows: Tensor
) -> Float[Tensor, "N V"]:
    """Mean log-ratio of the wordings' poles, centred; 0 where the base has no probability.

    Args:
        chat: The base.
        p: Its next-token probabilities at the rows.
        poles: Final states at all positions, per wording.
        rows: Positions.
    """
    total = torch.zeros_like(p)
    for up, down in poles:
        total += chat.logits(up[rows]).log_softmax(-1) - chat.logits(down[rows]).log_softmax(-1)
    mean = (total / len(poles)).masked_fill_(p == 0, 0)
    return mean - (p * mean).sum(-1, keepdim=True)


def _sums(
    p: Float[Tensor, "N V"],
    log_p: Float[Tensor, "N V"],
    log_q: Float[Tensor, "N V"],
    rewards: Sequence[Float[Tensor, "N V"]],
) -> Float[Tensor, "N K"]:
    """What each position adds to its answer's sums; in place, since these are most of the time."""
    gained = expected(log_q.exp(), rewards[-1])
    kl = expected(log_q.exp(), log_q - log_p)
    change = (log_q - log_p).masked_fill_(p == 0, 0)
    change -= (p * change).sum(-1, keepdim=True)
    weighed = p * change
    columns = [torch.ones_like(kl), (weighed * change).sum(-1), kl]
    for r in rewards:
        columns += [(weighed * r).sum(-1), (p * r.square()).sum(-1)]
    return torch.stack([*columns, gained], dim=-1)


def _read(sums: NDArray[np.float64]) -> Fisher:
    column = dict(zip(COLUMNS, sums.T, strict=True))

    def over(statistic: Statistic, *names: str) -> Reading:
        rows = np.stack([column[name] for name in names], axis=-1)
        return jackknife(rows, lambda samples: statistic(samples.sum(axis=1)))

    return Fisher(
        kl=float(column["kl"].sum() / column["tokens"].sum()),
        cosine=over(_over_root, "both-train", "change", "reward-train"),
        held_out=over(_over_root, "both-held_out", "change", "reward-held_out"),
        per_root_kl=over(_over_root, "gained", "kl", "tokens"),
        optimum=over(lambda s: np.sqrt(2 * s[..., 0] / s[..., 1]), "reward-held_out", "tokens"),
    )


def _over_root(sums: Floats) -> Floats:
    """x/√(y·z) of rows (x, y, z); NaN where nothing changed."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 0] / np.sqrt(sums[..., 1] * sums[..., 2])
