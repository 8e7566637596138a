"""Preference: what the vector writes is to be likelier than what its opposite writes (DPO).

For a prompt with y⁺ written at the teacher's dose and y⁻ at the opposite dose, p the student and q
the reference:
    m = β·([ln p(y⁺) − ln q(y⁺)] − [ln p(y⁻) − ln q(y⁻)])
    L = mean over n prompts of ln(1 + e⁻ᵐ)  +  c·CE(y⁺)
    without c: ∂L/∂ln p(y⁺) = −β/(1 + eᵐ)/n = −∂L/∂ln p(y⁻)
so that a step is a cross-entropy whose weight is the same at all tokens of an answer. Both answers
break alike where the push itself breaks text: what they share has no gradient.

Source: Rafailov et al. 2023, arXiv:2305.18290; the cross-entropy beside it is that of Pang et al.
2024, arXiv:2404.19733.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from steerheal.config import HealSettings, SamplingSettings
from steerheal.models.generate import Draw, generate
from steerheal.models.model import ChatModel
from steerheal.models.score import Pair, token_logprobs
from steerheal.records import Completion
from steerheal.state.values import State, entered
from steerheal.streams import OPPOSED, stream


@dataclass(frozen=True)
class Rivals:
    """Which answer each one is preferred to, and how likely the reference finds both."""

    of: Mapping[int, int]
    """Place of the other answer by that of the preferred one."""
    before: Sequence[float]
    """The reference's log-probability of every answer, in nats."""

    def both(self, rows: Sequence[int]) -> list[int]:
        """Preferred answers and the others."""
        return [*rows, *(self.of[row] for row in rows)]

    def judged(
        self, logs: Mapping[int, float], rows: Sequence[int], tokens: int, settings: HealSettings
    ) -> tuple[float, dict[int, float]]:
        """The loss, and the weight of every answer's cross-entropy in its gradient.

        Args:
            logs: The student's log-probability of every answer.
            rows: The preferred ones.
            tokens: Of these, together.
            settings: β and c.
        """
        gained = {row: logs[row] - self.before[row] for row in self.both(rows)}
        margins = torch.tensor(
            [settings.beta * (gained[row] - gained[self.of[row]]) for row in rows],
            dtype=torch.float64,
        )
        share = settings.preference_ce / tokens
        loss = -logsigmoid(margins).mean().item() - share * sum(logs[row] for row in rows)
        pull = (settings.beta * (-margins).sigmoid() / len(rows)).tolist()
        weights = {row: one + share for row, one in zip(rows, pull, strict=True)}
        weights |= {self.of[row]: -one for row, one in zip(rows, pull, strict=True)}
        return loss, weights


def opposed(
    chat: ChatModel,
    teacher: State,
    kept: Sequence[Completion],
    sampling: SamplingSettings,
    seed: int | None,
) -> list[Completion]:
    """What the teacher writes to the same prompts at the opposite doses, in the same order.

    Args:
        chat: The model, in no state.
        teacher: Who wrote the text, at any dose.
        kept: The text.
        sampling: How the teacher writes.
        seed: The heal's; the draws have a stream of it. Without it each has its text's own seed,
            so that only the dose is another.
    """
    seeds = [item.seed for item in kept]
    if seed is not None:
        draws_from = stream(seed, OPPOSED) * 1_000_003
        seeds = [draws_from + i for i in range(len(kept))]
    doses = sorted({item.dose for item in kept})
    draws = [
        Draw(item.prompt, state=doses.index(item.dose), seed=own)
        for item, own in zip(kept, seeds, strict=True)
    ]
    # Without a dose, as in the unsteered control, the opposite of a teacher is itself once more.
    states = [teacher.at_dose(-dose) if teacher.dose else teacher for dose in doses]
    with entered(chat, states) as reader:
        return generate(reader, draws, sampling)


def rivals_of(reference: ChatModel, pairs: Sequence[Pair]) -> Rivals:
    """The first half of the pairs, each preferred to the one in its place in the second half.

    Args:
        reference: The reference, entered.
        pairs: Prompts and answers, token ids.
    """
    count = len(pairs) // 2
    logs = token_logprobs(reference, pairs)
    return Rivals({i: count + i for i in range(count)}, [row.sum().item() for row in logs])


def by_row(
    values: Float[Tensor, " N"], rows: Sequence[int], lengths: Sequence[int]
) -> dict[int, float]:
    """Sums over the positions of every row."""
    parts = values.cpu().double().split(list(lengths))
    return {row: part.sum().item() for row, part in zip(rows, parts, strict=True)}
