"""The canary: answer mass at a forced JSON slot that an undamaged model fills almost surely.

A statement, two worked examples before it, and the reply opened up to the value. p_ans_any is the
probability on the allowed answers' first tokens; ppx_json the perplexity of the forced opening.
"""

import json
from collections.abc import Callable, Sequence

import torch

from steerheal.measure import finite
from steerheal.models.batch import by_length, shrinking, token_budget
from steerheal.models.chat import prompt_ids, text_ids
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
    prompts = [prompt_ids(chat, _turns(statement), prefill=OPENING) for statement in asked]
    slot, count = len(text_ids(chat, OPENING)), len(asked)
    shortest = min(map(len, prompts))
    allowed = torch.tensor(sorted({text_ids(chat, answer)[0] for answer in ANSWERS}))
    rows: dict[int, CanaryRow] = {}

    def work(batch: list[int]) -> None:
        doses = torch.tensor([levels[i // count] for i in batch], device=chat.device)
        hidden, skipped = hidden_after_shared(
            chat,
            [prompts[i % count] for i in batch],
            shortest - slot - 1,
            doses=None if handle is None else doses,
            handle=handle,
        )
        for row, i in enumerate(batch):
            prompt = prompts[i % count]
            end = len(prompt) - skipped
            logs = chat.logits(hidden[row, end - slot - 1 : end]).log_softmax(-1).cpu()
            forced = torch.tensor(prompt[-slot:])
            nll = -logs[:-1].gather(1, forced[:, None]).mean().item()
            mass = logs[-1, allowed].exp().sum().item()
            name = f"statement-{i % count:02d}"
            rows[i] = CanaryRow(id=name, p_ans_any=mass, nll_prefill=nll)
        progress(len(batch))

    lengths = [len(prompt) for prompt in prompts] * len(levels)
    for batch in by_length(lengths, token_budget(chat.device)):
        shrinking(batch, work)
    read = [[rows[k * count + i] for i in range(count)] for k in range(len(levels))]
    finite.refuse_broken(chat, read, levels, handle)
    return read


def _turns(statement: str) -> list[Message]:
    turns: list[Message] = []
    for example, truth in EXAMPLES:
        turns += [
            ("user", ASK.format(statement=example)),
            ("assistant", json.dumps({"answer": truth})),
        ]
    return [*turns, ("user", ASK.format(statement=statement))]
