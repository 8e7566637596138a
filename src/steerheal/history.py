"""A finished run's model with its history, for the commands that use a run afterwards."""

from pathlib import Path

from steerheal.config import RunConfig, validated
from steerheal.console import Console
from steerheal.errors import UserError
from steerheal.heal.adapter import Adapter
from steerheal.heal.fold import Gated
from steerheal.models.load import ChatModel, load
from steerheal.records import RunRecord
from steerheal.store import round_folder


def student_of(
    record: RunRecord, folder: Path, number: int, gate: float, console: Console
) -> tuple[ChatModel, tuple[Gated, ...], int]:
    """The run's model, its history up to a round at a gate, and the round's number from 1.

    Where no round is asked for and none was named best, that is the last folded one, with a note.

    Raises:
        UserError: no such round, another model than the run's.
    """
    done = [item.round + 1 for item in record.rounds if item.outcome == "folded"]
    if not done:
        raise UserError(f"{folder} has no folded round.")
    last = number or (done[-1] if record.best is None else record.best + 1)
    if last not in done:
        raise UserError(f"{folder} has no folded round {last}; it has {done}.")
    if not number and record.best is None:
        why = record.best_reason or f"it is {record.status}"
        console.note(
            f"{folder} names no best round: {why}. Round {last} is taken, the last one folded."
        )
    config = validated(RunConfig, record.config, source=str(folder))
    chat = load(config.model)
    if chat.fingerprint != record.environment["fingerprint"]:
        raise UserError(
            f"{folder} was made with another model: {record.environment['model']} "
            f"({record.environment['fingerprint']}); this one is {chat.fingerprint}."
        )
    history = tuple(
        Gated(Adapter.load(round_folder(folder, item - 1) / "adapter"), config.gate * gate)
        for item in done
        if item <= last
    )
    return chat, history, last
