"""Finished stages at a URL: copied in where a run would make them, and out once they are made.

The URL is of any store that fsspec knows. A stage lies there as `<stage>/<digest>` for each of its
files and `<stage>/stage.json`, which is written last: until that is there nobody sees the stage,
and two writers of one stage never mix their files. A store has no locks: two machines that need a
stage at the same moment both make it.
"""

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from fsspec.core import url_to_fs
from fsspec.utils import get_protocol

from steerheal.disk import whole_folder
from steerheal.errors import UserError, first_line
from steerheal.pipeline.stage_head import HEAD, StageHead, digest, head_of

PROBE = ".probe"


class Share:
    """Stages that runs elsewhere have finished, and that this one finishes for them.

    What goes wrong on the way is said and ends nothing: every stage is on the disk in any case.
    """

    def __init__(self, url: str, note: Callable[[str], None]) -> None:
        """Opens the place.

        Args:
            url: Of a folder, such as `s3://BUCKET/FOLDER`.
            note: Hears what could not be copied.

        Raises:
            UserError: no such kind of store, its package is not installed, or it refuses.
        """
        if "://" not in url:
            raise UserError(f"--share {url} is no URL: give one such as s3://BUCKET/FOLDER.")
        local = {"auto_mkdir": True} if get_protocol(url) == "file" else {}
        self._url, self._note = url, note
        try:
            self._files, self._root = url_to_fs(url, **local)
        except (ImportError, ValueError, OSError) as error:
            raise self._refused(error) from error

    def try_out(self) -> None:
        """Writes something there and takes it away again.

        Raises:
            UserError: the store lets nobody, or not this user, write there.
        """
        try:
            self._files.pipe_file(f"{self._root}/{PROBE}", b"steerheal")
            self._files.rm_file(f"{self._root}/{PROBE}")
        except Exception as error:  # every store has errors of its own
            raise self._refused(error) from error

    def fetch(self, home: Path) -> bool:
        """Puts a stage at its place on the disk, if a whole one is there.

        One that is damaged loses its head, so that whoever makes it again sends it anew.
        """
        try:
            content = self._read(home.name, HEAD)
            try:
                found = self._whole(home.name, StageHead.model_validate_json(content))
            except (FileNotFoundError, ValueError) as error:
                self._note(f"{home.name} · damaged at {self._url}: {first_line(error)}")
                self._files.rm_file(f"{self._root}/{home.name}/{HEAD}")
                return False
        except FileNotFoundError:
            return False
        except Exception as error:  # noqa: BLE001  every store has errors of its own
            self._note(f"{home.name} · not to be had from {self._url}: {first_line(error)}")
            return False
        with whole_folder(home, shared=True) as work:
            for name, body in (*found.items(), (HEAD, content)):
                (work / name).parent.mkdir(parents=True, exist_ok=True)
                (work / name).write_bytes(body)
        return True

    def _whole(self, stage: str, head: StageHead) -> dict[str, bytes]:
        """Every file of a stage.

        Raises:
            FileNotFoundError: one is not there.
            ValueError: one is not what was sent, or would lie outside its stage.
        """
        found: dict[str, bytes] = {}
        for name, named in head.files.items():
            path = PurePosixPath(name)
            found[name] = self._read(stage, named)
            if digest(found[name]) != named or path.is_absolute() or ".." in path.parts:
                raise ValueError(f"{name} is not what was sent")
        return found

    def send(self, home: Path) -> None:
        """Copies a finished stage there, unless there is one."""
        place = f"{self._root}/{home.name}"
        try:
            if self._files.exists(f"{place}/{HEAD}"):
                return
            for name, named in head_of(home).files.items():
                self._files.pipe_file(f"{place}/{named}", (home / name).read_bytes())
            self._files.pipe_file(f"{place}/{HEAD}", (home / HEAD).read_bytes())
        except Exception as error:  # noqa: BLE001  every store has errors of its own
            self._note(f"{home.name} · not shared at {self._url}: {first_line(error)}")

    def _read(self, stage: str, name: str) -> bytes:
        return self._files.cat_file(f"{self._root}/{stage}/{name}")

    def _refused(self, error: Exception) -> UserError:
        return UserError(
            f"--share {self._url} cannot be used: {first_line(error)} Give the URL of a folder "
            "that you may write to, and install the package that fsspec names for it."
        )
