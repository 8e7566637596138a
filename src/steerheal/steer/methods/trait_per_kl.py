"""v ∝ F⁻¹g: of all pushes on the steered blocks, the one that gains most of the trait per √KL.

On answers that the unsteered model writes, r is what a token says for the positive pole (the mean
over wordings of ln p(· | y⁺) − ln p(· | y⁻)), g the gradient of its expectation by v, and F the
Fisher matrix of the next-token distributions: the regression of r on ∂ ln p/∂v. One backward pass
gives g with the whole vocabulary, and u of tokens redrawn at every position gives one uuᵀ, whose
mean is F. Pushes are far more than texts, so that the regression is a ridge towards the mean
difference m:

    v_λ = c·m + (F + λ)⁻¹(g − c·F·m),   c = g·m / mᵀFm

Half of the texts fit it, and λ is what does best on the other half by g·v/√(vᵀFv); m is among what
is tried. The length is such that vᵀFv is that of m: the same KL at a small dose.

Source: the natural gradient (Amari 1998, Neural Computation 10) of the trait. Foldable: a bias on
the blocks' outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steerheal.measure.fisher import Sides, reward
from steerheal.models.batch import by_length, right_padded, shrinking, token_budget
from steerheal.models.chat import prompt_ids
from steerheal.models.hooks import adding_to_rows
from steerheal.models.score import Pair, continuation_states, in_chunks
from steerheal.records import Completion
from steerheal.steer.methods import mean_difference
from steerheal.steer.methods.method import Method
from steerheal.steer.methods.random import sampled
from steerheal.steer.states import Source

TEXTS = 32
"""Most contexts that the unsteered model answers; half of them fit, half score."""
DRAWS = 4
"""Times that the tokens of a text are redrawn."""
RIDGES = tuple(10.0**power for power in range(-2, 4))
"""λ, in multiples of F's mean eigenvalue among those that its draws reach."""
WIDTH = 4
"""Share of a batch without gradients that fits with them, as one over it."""


@dataclass(frozen=True)
class Slopes:
    """By the push P = all blocks' directions one after another, for each of some texts."""

    gain: Float[Tensor, "N P"]
    """Of the expected reward, summed over the text."""
    draws: Float[Tensor, "N K P"]
    """Of the log-probability of redrawn tokens, summed over the text."""

    def half(self, first: int) -> "Slopes":
        """Every other text."""
        return Slopes(self.gain[first::2], self.draws[first::2])

    def roots(self) -> Float[Tensor, "M P"]:
        """A with AᵀA the Fisher matrix."""
        return (self.draws / self.draws.shape[1] ** 0.5).flatten(0, 1)

    def score(self, push: Float[Tensor, " P"]) -> float:
        """Reward gained per √(vᵀFv), at any length of v."""
        return (self.gain.sum(0) @ push / (self.roots() @ push).norm()).item()


def directions(source: Source) -> dict[int, Float[Tensor, " D"]]:
    """The push per block; the mean difference where nothing that was fitted is better."""
    means = mean_difference.directions(source)
    push = fitted(torch.cat(list(means.values())).double(), slopes(source))
    parts = push.float().split([len(mean) for mean in means.values()])
    return dict(zip(means, parts, strict=True))


def fitted(mean: Float[Tensor, " P"], found: Slopes) -> Float[Tensor, " P"]:
    """What does best on the second half of what the first half fits, as long as m in F."""
    fit, held = found.half(0), found.half(1)
    roots, gain = fit.roots(), fit.gain.sum(0)
    along = roots @ mean
    scale = gain @ mean / along.square().sum()
    rest = gain - scale * (roots.T @ along)
    gram = roots @ roots.T
    ridges = [share * gram.trace() / len(gram) for share in RIDGES]
    tried = [mean]
    for ridge in ridges:
        inner = torch.linalg.solve(gram + ridge * torch.eye(len(gram)).to(gram), roots @ rest)
        tried.append(scale * mean + (rest - roots.T @ inner) / ridge)
    best = max((one for one in tried if one.isfinite().all()), key=held.score, default=mean)
    whole = found.roots()
    return best * ((whole @ mean).norm() / (whole @ best).norm())


def slopes(source: Source) -> Slopes:
    """Of what the unsteered model answers to the first contexts."""
    said = [text for text in sampled(source, TEXTS) if text.tokens]
    gains: list[Tensor] = [torch.empty(0)] * len(said)
    draws = list(gains)
    noise = torch.Generator(device=source.chat.device).manual_seed(source.settings.seed)
    lengths = [len(prompt_ids(source.chat, text.prompt)) + len(text.tokens) for text in said]

    def work(batch: list[int]) -> None:
        found = _slopes(source, [said[i] for i in batch], noise)
        for i, gain, drawn in zip(batch, *found, strict=True):
            gains[i], draws[i] = gain, drawn
        source.progress(len(batch))

    for batch in by_length(lengths, token_budget(source.chat.device) // WIDTH):
        shrinking(batch, work)
    return Slopes(torch.stack(gains).double(), torch.stack(draws).double())


def _under(source: Source, texts: Sequence[Completion], system: str = "") -> list[Pair]:
    """The texts after their prompts under a system prompt."""
    return [(prompt_ids(source.chat, text.prompt, system=system), text.tokens) for text in texts]


@torch.enable_grad()
def _slopes(
    source: Source, texts: Sequence[Completion], noise: torch.Generator
) -> tuple[Float[Tensor, "B P"], Float[Tensor, "B K P"]]:
    """Gains and draws of some texts, read together."""
    chat, width = source.chat, source.chat.text_config.hidden_size
    sides = [
        [torch.cat(continuation_states(chat, _under(source, texts, side))) for side in pair]
        for pair in source.wordings
    ]
    poles = [(up, down) for up, down in sides]
    rows = _under(source, texts)
    nothing = [
        torch.zeros(len(rows), width, device=chat.device, requires_grad=True) for _ in source.layers
    ]
    with adding_to_rows(chat, dict(zip(source.layers, nothing, strict=True))):
        ids = right_padded([[*a, *b] for a, b in rows], 0, chat.device)
        hidden = chat.hidden(ids, use_cache=False)
    at = torch.cat(
        [row * ids.shape[1] + torch.arange(len(b)) + len(a) - 1 for row, (a, b) in enumerate(rows)]
    ).to(chat.device)
    own = hidden.flatten(0, 1)[at]
    found = []
    for pull in _by_states(source, own.detach(), poles, noise):
        slopes = torch.autograd.grad(own, nothing, pull.to(own), retain_graph=True)
        found.append(torch.cat([slope.float() for slope in slopes], dim=-1).cpu())
    return found[0], torch.stack(found[1:], dim=1)


def _by_states(
    source: Source, own: Float[Tensor, "T D"], poles: Sequence[Sides], noise: torch.Generator
) -> Float[Tensor, "C T D"]:
    """Slopes by the final states: of the expected reward, then of every draw's log-probability."""
    chat, every = source.chat, torch.arange(len(own), device=source.chat.device)

    def pulls(here: slice) -> Float[Tensor, "C N D"]:
        rows = every[here]
        states = own[rows].requires_grad_()
        logs = chat.logits(states).log_softmax(-1)
        p = logs.exp()
        drawn = torch.multinomial(p.detach(), DRAWS, replacement=True, generator=noise)
        values = [(p * reward(chat, p.detach(), poles, rows)).sum()]
        values += [logs.gather(1, drawn[:, k : k + 1]).sum() for k in range(DRAWS)]
        slopes = [torch.autograd.grad(value, states, retain_graph=True)[0] for value in values]
        return torch.stack(slopes)

    return torch.cat(in_chunks(chat, len(own), pulls), dim=1)


def extra(contexts: int) -> int:
    """Rows beyond the poles' own: the texts, once written and once read."""
    return 2 * min(TEXTS, contexts)


METHOD = Method(directions, extra=extra, joint=True)
