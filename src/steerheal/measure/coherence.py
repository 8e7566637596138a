"""The canary: answer mass at a forced JSON slot that an undamaged model fills almost surely.

A statement, two worked examples before it, and the reply opened up to the value. p_ans_any is the
probability on the allowed answers' first tokens; ppx_json the perplexity of the forced opening.
"""

import json
from collections.abc import Callable, Sequence

import torch

from steerheal.models.batch import by_length, shrinking, token_budget
from steerheal.models.chat import Message, prompt_ids, text_ids
from steerheal.models.load import ChatModel
from steerheal.models.score import hidden_after_shared
from steerheal.prompts import lines
from steerheal.records import CanaryRow

ASK = 'Statement: {statement}\nReply with JSON: {{"answer": true}} or {{"answer": false}}.'
OPENING = '{"answer":'
ANSWERS = (" true", " false", "true", "false")
EXAMPLES = (("Ice is frozen water.", True), ("A week has nine days.", False))


@torch.no_grad()
def read(
    chat: ChatModel,
    statements: Sequence[str] | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> list[CanaryRow]:
    """A row per statement, in the order given; the bundled statements when none are given."""
    asked = list(statements) if statements is not None else list(lines("statements"))
    prompts = [prompt_ids(chat, _turns(statement), prefill=OPENING) for statement in asked]
    slot = len(text_ids(chat, OPENING))
    shortest = min(map(len, prompts))
    allowed = torch.tensor(sorted({text_ids(chat, answer)[0] for answer in ANSWERS}))
    rows: dict[int, CanaryRow] = {}

    def work(batch: list[int]) -> None:
        hidden, skipped = hidden_after_shared(
            chat, [prompts[i] for i in batch], shortest - slot - 1
        )
        for row, i in enumerate(batch):
            end = len(prompts[i]) - skipped
            logs = chat.logits(hidden[row, end - slot - 1 : end]).log_softmax(-1).cpu()
            forced = torch.tensor(prompts[i][-slot:])
            nll = -logs[:-1].gather(1, forced[:, None]).mean().item()
            mass = logs[-1, allowed].exp().sum().item()
            rows[i] = CanaryRow(id=f"statement-{i:02d}", p_ans_any=mass, nll_prefill=nll)
        progress(len(batch))

    for batch in by_length([len(prompt) for prompt in prompts], token_budget(chat.device)):
        shrinking(batch, work)
    return [rows[i] for i in range(len(asked))]


def _turns(statement: str) -> list[Message]:
    turns: list[Message] = []
    for example, truth in EXAMPLES:
        turns += [
            ("user", ASK.format(statement=example)),
            ("assistant", json.dumps({"answer": truth})),
        ]
    return [*turns, ("user", ASK.format(statement=statement))]
