"""What several commands refuse before a model is loaded, and before torch is."""

import os
import tempfile
from pathlib import Path
from typing import Any

from steerheal.config import MeasureSettings, ModelSettings, RunConfig
from steerheal.errors import UserError
from steerheal.measure import moralmaps, protocol, vignettes
from steerheal.ranks import launched
from steerheal.records import Record
from steerheal.store import read_record, read_run


def refuse_unreadable(settings: MeasureSettings) -> None:
    """Refuses vignettes, wording or an instrument that are not there; a hub's are left for later.

    Raises:
        UserError: a wrong file, or a package that is not installed.
    """
    if not settings.vignettes.startswith(vignettes.HUB):
        vignettes.chosen(settings)
    if settings.protocol:
        protocol.load(Path(settings.protocol))
    if settings.instrument == "moralmaps":
        moralmaps.refuse_absent(settings.think)


def refuse_unsharable(url: str) -> None:
    """Refuses a place for shared stages that cannot be written.

    Raises:
        UserError: no such kind of store, its package is not installed, or it refuses.
    """
    if url:
        from steerheal.pipeline.share import Share

        Share(url, note=lambda _: None).try_out()


def refuse_unshared(model: ModelSettings) -> None:
    """Refuses to share a model among the processes of a run that has one.

    Raises:
        UserError: it is asked for without a launcher.
    """
    if model.shard and launched() == 1:
        raise UserError(
            "--model.shard holds a model over several processes, and there is one. Start "
            "`steerheal run` with torchrun or accelerate launch, which other commands and "
            "--workers do not take, or leave it out."
        )


def folded_run(folder: Path) -> None:
    """Refuses what is no run, and a run without a folded round.

    Raises:
        UserError: it is one of these.
    """
    if all(row.outcome != "folded" for row in read_run(folder).rounds):
        raise UserError(f"{folder} has no folded round to read.")


def refuse_judge(config: RunConfig, word: str) -> None:
    """Refuses a judge where none is asked.

    Raises:
        UserError: one is given.
    """
    if config.judge:
        raise UserError(
            f"--judge: `steerheal {word}` has no use for {config.judge}. A judge reads the answers "
            "of `steerheal run`, `steerheal evaluate` and `steerheal compare`: leave it out here."
        )


def writable_file(file: Path, option: str) -> None:
    """Refuses a place where no file can be written.

    Raises:
        UserError: it is a folder, or lies in what is none or cannot be written.
    """
    if file.is_dir():
        raise UserError(f"{option}: {file} is a folder; give a file in it.")
    _refuse_closed(file.absolute().parent, option)


def writable_folder(folder: Path, option: str) -> None:
    """Refuses a place where no folder can be made or written.

    Raises:
        UserError: it is a file, or lies in what is no folder or cannot be written.
    """
    _refuse_closed(folder.absolute(), option)


def refuse_other(file: Path, kind: type[Record], settings: dict[str, Any]) -> None:
    """Refuses a file that holds the same kind of record, made with other options.

    Raises:
        UserError: it does, or it cannot be read.
    """
    if file.exists() and getattr(read_record(file, kind), "settings", None) != settings:
        raise UserError(
            f"{file.parent} holds a {file.stem} with other settings. Choose another folder with "
            "--out, or remove it."
        )


def _refuse_closed(folder: Path, option: str) -> None:
    """Tries a file in the nearest folder that there is: permission bits do not tell everything."""
    try:
        nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        if not nearest.exists():
            raise UserError(f"{option}: {nearest} is a link that leads nowhere.")
        if not nearest.is_dir():
            raise UserError(f"{option}: {nearest} is a file, not a folder.")
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise UserError(f"{option}: {folder} cannot be written ({error.strerror}).") from error
