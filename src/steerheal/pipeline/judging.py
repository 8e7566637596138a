"""A judge of free answers: another model, examined before long work and loaded again after it.

It is released in between, so that a state is read with the memory that there is. What labelled
replies say of it is kept by its fingerprint.
"""

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from steerheal.code import made_by
from steerheal.config import ModelSettings
from steerheal.console import Console
from steerheal.errors import UserError
from steerheal.measure.admission import admission, labelled
from steerheal.measure.judge import Exchange, judged, looks, poles_of
from steerheal.measure.readings import table
from steerheal.measure.readings.judged import with_judged
from steerheal.models.load import load
from steerheal.models.model import ChatModel
from steerheal.personas import Persona
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

    @contextmanager
    def once(self) -> Iterator["Once"]:
        """The same for answers that come in parts: loaded once, for the first that are new."""
        with ExitStack() as until:
            yield Once(self, until)

    def of(self, states: Sequence[Scores], persona: Persona, console: Console) -> list[Scores]:
        """The states' scores with what the judge makes of their free answers.

        Raises:
            UserError: the judge cannot be loaded, or is another one by now.
        """
        said = [
            Exchange(row.completion.prompt, row.completion.text)
            for scores in states
            for row in scores.persona
        ]
        poles = poles_of(persona)
        with console.stage("judging the answers", looks(poles) * len(said)) as progress:
            rows = iter(judged(self, said, poles, progress).rows)
        release()
        return [
            with_judged(scores, [next(rows) for _ in scores.persona], admitted=self.found.admitted)
            for scores in states
        ]


class Once:
    """A judge that stays in memory from the first answers on that it is asked about."""

    def __init__(self, by: Judging, until: ExitStack) -> None:
        self.found = by.found
        self._by, self._until = by, until
        self._chat: ChatModel | None = None

    @property
    def key(self) -> str:
        """Which model it is."""
        return self.found.fingerprint

    @contextmanager
    def opened(self) -> Iterator[ChatModel]:
        """It is in memory; raises as `Judging.opened`."""
        if self._chat is None:
            self._chat = self._until.enter_context(self._by.opened())
        yield self._chat


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


def refuse_unsure(damage: str, judge: Judging) -> None:
    """Refuses to make arms equal by a judge that is not admitted.

    Raises:
        UserError: it is not.
    """
    if table.listed([damage])[0].judged and not judge.found.admitted:
        raise UserError(
            f"--damage {damage}: {judge.found.words()}. Choose another reading or another judge."
        )


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
    with console.stage("examining the judge", looks() * len(replies)) as progress:
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
