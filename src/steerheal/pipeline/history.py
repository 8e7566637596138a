"""A finished run's model with its history, for the commands that use a run afterwards."""

from pathlib import Path

from steerheal.console import Console
from steerheal.errors import UserError
from steerheal.models.load import load
from steerheal.models.model import ChatModel
from steerheal.records import RunRecord
from steerheal.state.adapter import Adapter
from steerheal.state.fold import Gated
from steerheal.state.values import Plain
from steerheal.store import round_folder


def round_of(record: RunRecord, folder: Path, number: int, console: Console) -> int:
    """The folded round that is asked for, from 1; 0 is the best one.

    Where none was named best, that is the last folded one, with a note.

    Raises:
        UserError: no such round.
    """
    done = [row.round + 1 for row in record.rounds if row.outcome == "folded"]
    if not done:
        raise UserError(f"{folder} has no folded round to read.")
    last = number or (done[-1] if record.best is None else record.best + 1)
    if last not in done:
        raise UserError(f"{folder} has no folded round {last}; it has {done}.")
    if not number and record.best is None:
        why = record.best_reason or f"it is {record.status}"
        console.note(
            f"{folder} names no best round: {why}. Round {last} is taken, the last one folded."
        )
    return last


def student_of(
    record: RunRecord, folder: Path, number: int, gate: float, console: Console
) -> tuple[ChatModel, Plain, int]:
    """The run's model, its student after a round (as `round_of` finds it) at a gate, and the round.

    Raises:
        UserError: no such round, another model than the run's.
    """
    last = round_of(record, folder, number, console)
    config = record.settings(folder)
    chat = load(config.model)
    if chat.fingerprint != record.environment["fingerprint"]:
        raise UserError(
            f"{folder} was made with another model: {record.environment['model']} "
            f"({record.environment['fingerprint']}); this one is {chat.fingerprint}."
        )
    return chat, Plain(history_of(record, folder, last, gate)), last


def history_of(record: RunRecord, folder: Path, last: int, gate: float) -> tuple[Gated, ...]:
    """The folded adapters of rounds 1 to `last`, each at the run's gate times another one."""
    own = record.settings(folder).gate
    return tuple(
        Gated(Adapter.load(round_folder(folder, row.round) / "adapter"), own * gate)
        for row in record.rounds[:last]
        if row.outcome == "folded"
    )
