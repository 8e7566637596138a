"""The canary: answer mass at a forced JSON slot that an undamaged model fills almost surely.

A statement, two worked examples before it, and the reply opened up to the value. p_ans_any is the
probability on the allowed answers' first tokens; ppx_json the perplexity of the forced opening.
"""

import json
from collections.abc import Callable, Sequence

import torch

from steerheal.measure import finite
from steerheal.models.batch import by_length, shrinking, token_budget
from steerheal.models.chat import Told, told
from steerheal.models.hooks import Dosed
from steerheal.models.model import ChatModel
from steerheal.models.score import hidden_after_shared
from steerheal.models.template import Message
from steerheal.prompts import lines
from steerheal.records import CanaryRow

ASK = 'Statement: {statement}\nReply with JSON: {{"answer": true}} or {{"answer": false}}.'
OPENING = '{"answer":'
ANSWERS = (" true", " false", "true", "false")
EXAMPLES = (("Ice is frozen water.", True), ("A week has nine days.", False))


def read(
    chat: ChatModel,
    statements: Sequence[str] | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> list[CanaryRow]:
    """A row per statement, in the order given; the bundled statements when none are given.

    Raises:
        UserError: logits that are not finite.
    """
    rows = sweep(chat, statements, progress=progress)[0]
    finite.refuse_unread(chat, rows)
    return rows


@torch.no_grad()
def sweep(
    chat: ChatModel,
    statements: Sequence[str] | None = None,
    levels: Sequence[float] = (0.0,),
    handle: Dosed | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> list[list[CanaryRow]]:
    """The rows at every level of a dose, all levels in the same batches.

    Args:
        chat: The model.
        statements: What is asked; the bundled ones when none are given.
        levels: Doses, one list of rows each.
        handle: What sets a dose per row; without one the model is read as it is, at one level.
        progress: Called with the number of rows read, over all levels.

    What is not finite at a level above 0 stays NaN.

    Raises:
        UserError: logits that are not finite without a dose.
    """
    assert handle is not None or len(levels) == 1, "several levels need a handle"
    asked = list(statements) if statements is not None else list(lines("statements"))
    opened, count = [_opened(chat, statement) for statement in asked], len(asked)
    opening = min(len(one.shared) - one.slot for one in opened) - 1
    rows: dict[int, CanaryRow] = {}

    def work(batch: list[int]) -> None:
        doses = torch.tensor([levels[i // count] for i in batch], device=chat.device)
        hidden, skipped = hidden_after_shared(
            chat,
            [opened[i % count].shared for i in batch],
            opening,
            doses=None if handle is None else doses,
            handle=handle,
        )
        for row, i in enumerate(batch):
            prompt, slot, rests, _ = opened[i % count]
            allowed = torch.tensor(sorted({rest[0] for rest in rests}))
            end = len(prompt) - skipped
            logs = chat.logits(hidden[row, end - slot - 1 : end]).log_softmax(-1).cpu()
            forced = torch.tensor(prompt[len(prompt) - slot :], dtype=torch.long)
            nll = -logs[:-1].gather(1, forced[:, None]).mean().item()
            mass = logs[-1, allowed].exp().sum().item()
            name = f"statement-{i % count:02d}"
            rows[i] = CanaryRow(id=name, p_ans_any=mass, nll_prefill=nll)
        progress(len(batch))

    lengths = [len(one.shared) for one in opened] * len(levels)
    for batch in by_length(lengths, token_budget(chat.device)):
        shrinking(batch, work)
    read = [[rows[k * count + i] for i in range(count)] for k in range(len(levels))]
    finite.refuse_broken(chat, read, levels, handle)
    return read


def _opened(chat: ChatModel, statement: str) -> Told:
    """The statement with the reply opened, and the answers that go on from the whole opening.

    Of two spellings of an answer one may join a token of the opening: the other is read.
    """
    found = told(chat, _turns(statement), OPENING, ANSWERS)
    furthest = max(found.leads)
    if furthest == 1:
        return found
    reach = [a for a, lead in zip(ANSWERS, found.leads, strict=True) if lead == furthest]
    return told(chat, _turns(statement), OPENING, reach)


def _turns(statement: str) -> list[Message]:
    turns: list[Message] = []
    for example, truth in EXAMPLES:
        turns += [
            ("user", ASK.format(statement=example)),
            ("assistant", json.dumps({"answer": truth})),
        ]
    return [*turns, ("user", ASK.format(statement=statement))]
