"""The canary: answer mass at a forced JSON slot that an undamaged model fills almost surely.

A statement, two worked examples before it, and the reply opened up to the value. p_ans_any is the
probability on the allowed answers' first tokens; the perplexity is that of the forced opening.
"""

import json
from collections.abc import Callable, Sequence

import torch

from steerheal.config import MeasureSettings
from steerheal.measure import finite
from steerheal.models.asking import Offered, offered
from steerheal.models.model import ChatModel
from steerheal.models.score import all_logprobs, continuation_states
from steerheal.models.template import Message
from steerheal.prompts import lines
from steerheal.records import CanaryRow

ASK = 'Statement: {statement}\nReply with JSON: {{"answer": true}} or {{"answer": false}}.'
OPENING = '{"answer":'
ANSWERS = (" true", " false", "true", "false")
EXAMPLES = (("Ice is frozen water.", True), ("A week has nine days.", False))


def asked(settings: MeasureSettings) -> tuple[str, ...]:
    """The statements that an evaluation reads: the first of the bundled ones."""
    return lines("statements")[: settings.statements]


def read(
    chat: ChatModel,
    statements: Sequence[str],
    progress: Callable[[int], None] = lambda _: None,
) -> list[CanaryRow]:
    """A row per statement, in the order given.

    Raises:
        UserError: logits that are not finite.
    """
    rows = sweep(chat, statements, progress=progress)[0]
    finite.refuse_unread(chat, rows)
    return rows


@torch.no_grad()
def sweep(
    chat: ChatModel,
    statements: Sequence[str],
    progress: Callable[[int], None] = lambda _: None,
) -> list[list[CanaryRow]]:
    """The rows of every entered state, all states in the same batches.

    Args:
        chat: The model, or what a state's door gives.
        statements: What is asked.
        progress: Called with the number of rows read, over all states.

    What is not finite under a dose stays NaN.

    Raises:
        UserError: logits that are not finite without a dose.
    """
    opened = [
        _opened(chat, statement, state) for state in range(chat.entered) for statement in statements
    ]
    # One token more stands for whatever follows the opening, which is what is asked for.
    pairs = [(one.line.without(one.slot), [*one.forced(), 0]) for one in opened]
    rows = []
    for one, states in zip(opened, continuation_states(chat, pairs, progress), strict=True):
        logs = all_logprobs(chat, states)
        allowed = torch.tensor(sorted({rest[0] for rest in one.rests}))
        forced = torch.tensor(one.forced(), dtype=torch.long)
        nll = -logs[:-1].gather(1, forced[:, None]).mean().item()
        mass = logs[-1, allowed].exp().sum().item()
        name = f"statement-{len(rows) % len(statements):02d}"
        rows.append(CanaryRow(id=name, p_ans_any=mass, nll_prefill=nll))
    read = [rows[start : start + len(statements)] for start in range(0, len(rows), len(statements))]
    finite.refuse_broken(chat, read)
    return read


def _opened(chat: ChatModel, statement: str, state: int) -> Offered:
    """The statement with the reply opened, and the answers that go on from the whole opening.

    Of two spellings of an answer one may join a token of the opening: the other is read.
    """
    found = offered(chat, _turns(statement), OPENING, ANSWERS, state=state)
    furthest = max(found.leads)
    if furthest == 1:
        return found
    reach = [a for a, lead in zip(ANSWERS, found.leads, strict=True) if lead == furthest]
    return offered(chat, _turns(statement), OPENING, reach, state=state)


def _turns(statement: str) -> list[Message]:
    turns: list[Message] = []
    for example, truth in EXAMPLES:
        turns += [
            ("user", ASK.format(statement=example)),
            ("assistant", json.dumps({"answer": truth})),
        ]
    return [*turns, ("user", ASK.format(statement=statement))]
