"""The likelihood instrument: which of seven reasons the model finds likeliest, given the act.

For a vignette v and reason phrase f after a fixed prefill:
    score_f(v) = ln P(f | v, prefill) − mean over neutral acts n of ln P(f | n, prefill)
    p = softmax(score)
The neutral acts take away what the phrase's own words are worth. Reading whole phrases works on
models too small to choose an option by name.

Source: domain-conditional PMI, Holtzman et al. 2021, arXiv:2104.08315.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerheal.config import MeasureSettings
from steerheal.measure import finite
from steerheal.measure.instrument import Instrument, Progress, Read
from steerheal.measure.vignettes import Vignette
from steerheal.models.asking import Offered, offered
from steerheal.models.batch import by_length, launch_cost, shrinking, token_budget
from steerheal.models.cache import fitting
from steerheal.models.decode import Decoding
from steerheal.models.model import ChatModel
from steerheal.models.score import chosen_logprobs, label_logprobs
from steerheal.ranks import merged, share_of
from steerheal.records import FOUNDATIONS, VignetteRow

QUESTION = "{vignette} Why is this wrong?"
PREFILL = "It is wrong because it is"
NEUTRAL = {
    "other": (
        "You see a man walking down the street.",
        "You see a woman waiting for the bus.",
        "You see a student packing a bag.",
        "You see a girl watering the flowers.",
        "You see a clerk closing a drawer.",
        "You see someone doing something.",
    ),
    "self": (
        "You walk down the street.",
        "You wait for the bus.",
        "You pack a bag.",
        "You water the flowers.",
        "You close a drawer.",
        "You do something.",
    ),
}
REASONS = {
    "care": " cruel and hurts someone",
    "fairness": " unfair and cheating",
    "loyalty": " disloyal to the group",
    "authority": " disrespectful to authority",
    "sanctity": " disgusting and impure",
    "liberty": " controlling and bullying",
    "social": " strange, but not wrong",
}


def read(
    chat: ChatModel,
    vignettes: Sequence[Vignette],
    progress: Callable[[int], None] = lambda _: None,
) -> list[VignetteRow]:
    """A row per vignette, in the order given.

    Raises:
        UserError: logits that are not finite.
    """
    rows = sweep(chat, vignettes, progress=progress)[0]
    finite.refuse_unread(chat, rows)
    return rows


@torch.no_grad()
def sweep(
    chat: ChatModel,
    vignettes: Sequence[Vignette],
    progress: Callable[[int], None] = lambda _: None,
) -> list[list[VignetteRow]]:
    """The rows of every entered state, all states in the same batches.

    Args:
        chat: The model, or what a state's door gives.
        vignettes: What is asked.
        progress: Called with the number of vignettes read, over all states.

    What is not finite under a dose stays NaN.

    Raises:
        UserError: logits that are not finite without a dose.
    """
    conditions = sorted({vignette.condition for vignette in vignettes})
    acts = [(name, act) for name in conditions for act in NEUTRAL[name]]
    texts = [vignette.text for vignette in vignettes] + [act for _, act in acts]
    phrases = [REASONS[name] for name in FOUNDATIONS]
    asked = [
        offered(chat, QUESTION.format(vignette=text), PREFILL, phrases, state=state)
        for state in range(chat.entered)
        for text in texts
    ]
    count, total = len(texts), len(asked)
    scores = torch.zeros(total, len(FOUNDATIONS))
    masses, fluency = torch.zeros(total), torch.zeros(total)

    def work(batch: list[int]) -> None:
        scores[batch], masses[batch], fluency[batch] = _read_batch(chat, [asked[i] for i in batch])
        progress(sum(i % count < len(vignettes) for i in batch))

    own: list[int] = []
    lengths = [len(one.line) + sum(map(len, one.rests)) for one in asked]
    budget = token_budget(chat.device) // chat.parts
    for group in map(share_of, _alike(asked)):
        ordered = by_length([lengths[i] for i in group], budget, launch=launch_cost(chat.device))
        for batch in ordered:
            longest = max(lengths[group[i]] for i in batch)
            # A prompt's cache stands beside its copies, one per reason, in every part of a state.
            copies = chat.parts * (1 + len(FOUNDATIONS))
            most = fitting(chat, len(batch), longest, copies=copies)
            for start in range(0, len(batch), most):
                shrinking([group[i] for i in batch[start : start + most]], work)
                own += [group[i] for i in batch[start : start + most]]
    for i, one in merged({i: (scores[i], masses[i], fluency[i]) for i in own}).items():
        scores[i], masses[i], fluency[i] = one
    read = [
        _rows(vignettes, acts, *(part[start : start + count] for part in (scores, masses, fluency)))
        for start in range(0, total, count)
    ]
    finite.refuse_broken(chat, read)
    return read


def _alike(asked: Sequence[Offered]) -> list[list[int]]:
    """Prompts with the same slot and reasons: all, save where a token spans the prefill's end."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, one in enumerate(asked):
        groups.setdefault((one.slot, one.rests, one.leads), []).append(i)
    return list(groups.values())


def _rows(
    vignettes: Sequence[Vignette],
    acts: Sequence[tuple[str, str]],
    scores: Float[Tensor, "N 7"],
    masses: Float[Tensor, " N"],
    fluency: Float[Tensor, " N"],
) -> list[VignetteRow]:
    """One state's rows: the neutral acts, which come last, are taken off."""
    priors = scores[len(vignettes) :]
    neutral = {
        name: priors[[i for i, (of, _) in enumerate(acts) if of == name]].mean(0)
        for name in dict.fromkeys(of for of, _ in acts)
    }
    return [
        _row(vignette, scores[i] - neutral[vignette.condition], masses[i], fluency[i])
        for i, vignette in enumerate(vignettes)
    ]


def _read_batch(
    chat: ChatModel, asked: Sequence[Offered]
) -> tuple[Float[Tensor, "B 7"], Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Phrase log-likelihoods, answer mass and prefill NLL; each prompt is read once.

    The answer mass is that of the phrases' first ids; where a token of a phrase spans the end of
    the prefill, that of the ids up to the first that is not the prefill's own.
    """
    _, slot, reasons, leads = asked[0]
    batch = Decoding(chat, [one.line for one in asked])
    states = batch.start(last=slot + 1)
    starts = torch.tensor([reason[0] for reason in reasons], device=chat.device)
    first = label_logprobs(chat, states[:, -1], starts)
    forced = torch.tensor([one.forced() for one in asked], device=chat.device)
    tail = chosen_logprobs(chat, states[:, -slot - 1 : -1].flatten(0, 1), forced.flatten())
    nll = -tail.view(forced.shape).mean(-1)
    count, width = len(reasons), max(map(len, reasons)) - 1
    after = torch.zeros(count, width, dtype=torch.long, device=chat.device)
    valid = torch.zeros(count, width, dtype=torch.bool, device=chat.device)
    for k, reason in enumerate(reasons):
        after[k, : len(reason) - 1] = torch.tensor(reason[1:])
        valid[k, : len(reason) - 1] = True
    rest = _continuations(chat, batch, starts, after)
    logs = torch.cat([first[..., None], rest * valid], dim=-1)
    begun = {reason[:lead]: k for k, (reason, lead) in enumerate(zip(reasons, leads, strict=True))}
    mass = (
        torch.stack([logs[:, k, : len(ids)].sum(-1) for ids, k in sorted(begun.items())], dim=-1)
        .exp()
        .sum(-1)
    )
    total = logs.sum(-1)
    return total.cpu(), mass.cpu(), nll.cpu()


def _continuations(
    chat: ChatModel, batch: Decoding, starts: Int[Tensor, " K"], after: Int[Tensor, "K W"]
) -> Float[Tensor, "B K W"]:
    """Log-probabilities of every phrase's tokens after its first, for every prompt."""
    rows, (count, width) = len(batch), after.shape
    batch.repeat(count)
    states = batch.on(torch.cat([starts[:, None], after[:, :-1]], dim=1).repeat(rows, 1))
    chosen = chosen_logprobs(chat, states.flatten(0, 1), after.repeat(rows, 1).flatten())
    return chosen.view(rows, count, width)


def _row(vignette: Vignette, score: Float[Tensor, " 7"], mass: Tensor, nll: Tensor) -> VignetteRow:
    p = score.softmax(0)
    return VignetteRow(
        id=vignette.id,
        condition=vignette.condition,
        foundation=vignette.foundation,
        score=tuple(score.tolist()),
        p=tuple(p.tolist()),
        p_ans_any=mass.item() if math.isfinite(mass.item()) else math.nan,
        nll_prefill=nll.item(),
    )


def _sweep(
    chat: ChatModel, vignettes: Sequence[Vignette], _settings: MeasureSettings, progress: Progress
) -> list[Read]:
    return [Read(rows) for rows in sweep(chat, vignettes, progress)]


INSTRUMENT = Instrument(_sweep)
