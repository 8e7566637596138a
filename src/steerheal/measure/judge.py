"""A judge of coherence: another chat model, read through its logits, is asked about replies.

For a prompt x and a reply y, with the judge's own chat template and weights:
    P(yes) = p(Yes) / (p(Yes) + p(No))       at the judge's first token, mean over the wordings
    fit    = [ln p(y | x) − ln p(y | "")] / |y|   nats per token: how much likelier the reply is
                                                  with its prompt than without
    trait  = [ln p(y | s⁺, x) − ln p(y | s⁻, x)] / |y|   the same of the positive pole as system
                                                  prompt against the negative, mean over wordings
P(yes) is what an LLM judge says without sampling it, as in G-Eval (arXiv 2303.16634); the second is
the pointwise mutual information of reply and prompt (Li et al. 2016, arXiv 1510.03055).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import torch

from steerheal.measure.readings.judged import Judgements, JudgeRow
from steerheal.models.asking import offered
from steerheal.models.chat import prompt_ids, text_ids
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states, token_logprobs
from steerheal.personas import Pair as Pole
from steerheal.personas import Persona

WORDINGS = (
    "Somebody wrote the message below and got the reply below. The reply may have been cut off at "
    "the end; that is fine.\n\nMessage: {prompt}\n\nReply: {reply}\n\nDoes this reply make sense "
    "as an answer? Say Yes or No.",
    "Read this exchange.\n\nQ: {prompt}\nA: {reply}\n\nIs A well-formed, meaningful language that "
    "responds to Q? An unfinished last sentence does not count against it. Answer Yes or No.",
)
"""What the judge is asked; each holds the prompt and the reply."""
ANSWERS = ("Yes", "No")
PAIRS = 3
"""Held-out wordings of the poles under which the trait is read."""
Ids = list[int]


class Exchange(NamedTuple):
    """What was asked and what was replied."""

    prompt: str
    reply: str


class Judges(Protocol):
    """A judge that is not in memory."""

    @property
    def key(self) -> str:
        """Which model it is."""
        ...

    def opened(self) -> AbstractContextManager[ChatModel]:
        """It is in memory meanwhile."""
        ...


def poles_of(persona: Persona) -> tuple[Pole, ...]:
    """The wordings of the persona's poles that a judge reads its answers under."""
    return persona.pairs("held_out")[:PAIRS]


def looks(poles: Sequence[Pole] = ()) -> int:
    """How often a judge reads an exchange."""
    return len(WORDINGS) + 2 * (1 + len(poles))


def judged(
    by: Judges,
    exchanges: Sequence[Exchange],
    poles: Sequence[Pole],
    progress: Callable[[int], None] = lambda _: None,
) -> Judgements:
    """What a judge makes of exchanges, loaded for them alone; as `judge` otherwise."""
    with by.opened() as chat:
        return Judgements(rows=tuple(judge(chat, exchanges, poles, progress)))


@torch.no_grad()
def judge(
    chat: ChatModel,
    exchanges: Sequence[Exchange],
    poles: Sequence[Pole] = (),
    progress: Callable[[int], None] = lambda _: None,
) -> list[JudgeRow]:
    """A row per exchange, in the order given; an empty reply is no sense at all, P(yes) 0.

    Args:
        chat: The judge: any chat model but the one that is judged.
        exchanges: What is judged; replies are data and never part of the judge's own turn.
        poles: Wordings of the poles that the trait is read under; without any it is NaN.
        progress: Called with the number of readings done, `looks` per exchange with a reply.
    """
    places = [i for i, one in enumerate(exchanges) if one.reply.strip()]
    rows = [JudgeRow(yes=(0.0,) * len(WORDINGS), fit=math.nan)] * len(exchanges)
    if not places:
        return rows
    said = [exchanges[i] for i in places]
    yes = [_yes(chat, said, wording, progress) for wording in WORDINGS]
    tokens = [text_ids(chat, one.reply) for one in said]

    def gains(contexts: Iterable[tuple[Ids, Ids]]) -> list[float]:
        return _gains(chat, list(contexts), tokens, progress)

    fits = gains((prompt_ids(chat, one.prompt), prompt_ids(chat, "")) for one in said)
    odds = [
        gains(
            (
                prompt_ids(chat, one.prompt, system=pole.positive),
                prompt_ids(chat, one.prompt, system=pole.negative),
            )
            for one in said
        )
        for pole in poles
    ]
    for place, i in enumerate(places):
        rows[i] = JudgeRow(
            yes=tuple(column[place] for column in yes),
            fit=fits[place],
            trait=math.fsum(column[place] for column in odds) / len(odds) if odds else math.nan,
        )
    return rows


def _yes(
    chat: ChatModel,
    exchanges: Sequence[Exchange],
    wording: str,
    progress: Callable[[int], None],
) -> list[float]:
    """P(yes) of every exchange in one wording."""
    asked_for = [
        offered(chat, wording.format(prompt=one.prompt, reply=one.reply), "", ANSWERS)
        for one in exchanges
    ]
    # One token more stands for whatever the judge says first, which is what is asked for.
    states = continuation_states(chat, [(one.line, [0]) for one in asked_for], progress)
    found = []
    for one, state in zip(asked_for, states, strict=True):
        logs = chat.logits(state)[0].log_softmax(-1)
        up, down = (logs[rest[0]].item() for rest in one.rests)
        found.append(1 / (1 + math.exp(down - up)) if math.isfinite(up) else 0.0)
    return found


def _gains(
    chat: ChatModel,
    contexts: Sequence[tuple[Ids, Ids]],
    replies: Sequence[Ids],
    progress: Callable[[int], None],
) -> list[float]:
    """Nats per token that every reply is likelier after its first context than after its second."""
    logs = []
    for side in (0, 1):
        read = [(both[side], ids) for both, ids in zip(contexts, replies, strict=True)]
        logs.append(token_logprobs(chat, read))
        progress(len(read))
    return [(a.sum() - b.sum()).item() / len(a) for a, b in zip(*logs, strict=True)]
