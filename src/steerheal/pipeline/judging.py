"""A judge of free answers: another model, examined before long work and loaded again after it.

It is released in between, so that a state is read with the memory that there is. What labelled
replies say of it is kept by its fingerprint.
"""

import gc
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from steerheal.code import made_by
from steerheal.config import ModelSettings
from steerheal.console import Console
from steerheal.errors import UserError
from steerheal.measure.admission import Admission, admission, labelled
from steerheal.measure.judge import WORDINGS, Exchange, judge
from steerheal.measure.readings.judged import with_judged
from steerheal.models.load import load
from steerheal.models.model import ChatModel
from steerheal.records import Scores
from steerheal.store import read_record, write_record


@dataclass(frozen=True)
class Judging:
    """A judge that has been examined."""

    settings: ModelSettings
    found: Admission

    def of(self, states: Sequence[Scores], console: Console) -> list[Scores]:
        """The states' scores with what the judge makes of their free answers.

        Raises:
            UserError: the judge cannot be loaded, or is another one by now.
        """
        chat = load(self.settings)
        if chat.fingerprint != self.found.fingerprint:
            raise UserError(f"{chat.name} has changed since it was examined. Run this again.")
        said = [
            Exchange(row.completion.prompt, row.completion.text)
            for scores in states
            for row in scores.persona
        ]
        with console.stage("judging the answers", len(WORDINGS) * len(said)) as progress:
            rows = iter(judge(chat, said, progress))
        del chat
        _release()
        return [
            with_judged(scores, [next(rows) for _ in scores.persona], admitted=self.found.admitted)
            for scores in states
        ]


def examined(name: str, judged: ChatModel, console: Console) -> Judging:
    """The judge of this name, with how well it tells labelled replies.

    Args:
        name: A hub id, a folder or a GGUF file.
        judged: The model that is to be judged.
        console: Told what was found.

    Raises:
        UserError: the judge cannot be loaded, or is the model itself.
    """
    settings = ModelSettings(name=name, device=str(judged.device))
    chat = load(settings)
    if chat.fingerprint == judged.fingerprint:
        raise UserError(
            f"--judge: {name} is the model that is read itself, and would judge its own answers. "
            "Give another chat model."
        )
    found = _admission(chat, console)
    del chat
    _release()
    console.note(found.words())
    return Judging(settings, found)


def _admission(chat: ChatModel, console: Console) -> Admission:
    """What labelled replies say of the judge, once per judge and code."""
    code = made_by(("measure.admission",))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    file = cache / "steerheal" / "judges" / f"{chat.fingerprint}-{code}.json"
    if file.is_file():
        with suppress(UserError):  # a damaged file is made again
            return read_record(file, Admission)
    replies = labelled()
    with console.stage("examining the judge", len(WORDINGS) * len(replies)) as progress:
        found = admission(chat, replies, progress)
    try:
        write_record(file, found)
    except UserError as error:
        console.note(f"what was found of the judge is not kept: {error}")
    return found


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
