"""A judge of free answers: another model, examined before long work and loaded again after it.

It is released in between, so that a state is read with the memory that there is. What labelled
replies say of it is kept by its fingerprint.
"""

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from steerheal.code import made_by
from steerheal.config import ModelSettings
from steerheal.console import Console
from steerheal.errors import UserError
from steerheal.measure.admission import admission, labelled
from steerheal.measure.judge import WORDINGS, Exchange, judged
from steerheal.measure.readings.judged import with_judged
from steerheal.models.load import load
from steerheal.models.model import ChatModel
from steerheal.records import Admission, Scores
from steerheal.store import read_record, write_record


@dataclass(frozen=True)
class Judging:
    """A judge that has been examined."""

    settings: ModelSettings
    found: Admission

    @property
    def key(self) -> str:
        """Which model it is."""
        return self.found.fingerprint

    @contextmanager
    def opened(self) -> Iterator[ChatModel]:
        """It is in memory meanwhile.

        Raises:
            UserError: it cannot be loaded, or is another one by now.
        """
        chat = load(self.settings)
        if chat.fingerprint != self.key:
            raise UserError(f"{chat.name} has changed since it was examined. Run this again.")
        yield chat

    def of(self, states: Sequence[Scores], console: Console) -> list[Scores]:
        """The states' scores with what the judge makes of their free answers.

        Raises:
            UserError: the judge cannot be loaded, or is another one by now.
        """
        said = [
            Exchange(row.completion.prompt, row.completion.text)
            for scores in states
            for row in scores.persona
        ]
        with console.stage("judging the answers", len(WORDINGS) * len(said)) as progress:
            rows = iter(judged(self, said, progress).rows)
        release()
        return [
            with_judged(scores, [next(rows) for _ in scores.persona], admitted=self.found.admitted)
            for scores in states
        ]


def examined(name: str, device: str, console: Console, *, read: str = "") -> Judging:
    """The judge of this name, with how well it tells labelled replies.

    Args:
        name: A hub id, a folder or a GGUF file.
        device: Where it runs.
        console: Told what was found.
        read: Fingerprint of the model that is to be judged, where that is known.

    Raises:
        UserError: the judge cannot be loaded, or is the model itself.
    """
    settings = ModelSettings(name=name, device=device)
    chat = load(settings)
    refuse_itself(name, chat.fingerprint, read)
    found = _admission(chat, console)
    del chat
    release()
    console.note(found.words())
    return Judging(settings, found)


def refuse_itself(name: str, judge: str, read: str) -> None:
    """Refuses a judge whose fingerprint is that of the model which is read.

    Raises:
        UserError: it is.
    """
    if judge == read:
        raise UserError(
            f"--judge: {name} is the model that is read itself, and would judge its own answers. "
            "Give another chat model."
        )


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


def release() -> None:
    """Gives back the memory of models that nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
