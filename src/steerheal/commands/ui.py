"""`steerheal ui`: the conversation of `chat` as a web page on this machine."""

import socket
from collections.abc import Callable
from threading import Event
from typing import Annotated

from pydantic import Field

from steerheal.bounds import FilePath, Label, Seed, Temperature
from steerheal.commands.command import POSITIONAL, Command
from steerheal.commands.refuse import folded_run
from steerheal.console import Console
from steerheal.errors import UserError
from steerheal.extras import refuse_absent
from steerheal.store import read_run

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Where nobody but this machine can come in."""


class UiCommand(Command):
    """Serves a page on this machine: base and best round side by side, gates and doses to slide.

    It needs the extra `ui`. Nothing is fetched from elsewhere and nothing is reported to anybody.
    """

    run: Annotated[FilePath, POSITIONAL]
    """The run folder."""
    host: Label = "127.0.0.1"
    """Where the page is served; any address but this machine's own lets others in."""
    port: Annotated[int, Field(ge=1, le=65_535)] = 7860
    """The page's port."""
    tokens: Annotated[int, Field(ge=1, le=512)] = 96
    """Longest answer, in tokens; the page can change it."""
    temperature: Annotated[Temperature, Field(le=2)] = 0.7
    """Softmax temperature; 0 is greedy. The page can change it."""
    seed: Seed = 0
    """Seed of the first answers; every turn takes the next one."""

    def check(self) -> None:
        """Refuses what is no run or has no folded round, a missing extra and a port in use."""
        folded_run(self.run)
        refuse_absent("ui", "steerheal ui")
        _refuse_taken(self.host, self.port)

    def do(self, console: Console, works: Callable[[], None]) -> None:
        """Serves until it is interrupted."""
        from steerheal.talk.page import Asked, opened
        from steerheal.talk.voices import begun

        works()
        voices = begun(self.run, read_run(self.run), console)
        asked = Asked(self.seed, self.tokens, self.temperature)
        page, address = opened(voices, asked, host=self.host, port=self.port)
        try:
            if self.host not in LOOPBACK:
                console.note(f"Whoever reaches {self.host} can use the page: it asks no password.")
            console.say(f"{address} · Ctrl-C ends it")
            Event().wait()
        finally:
            page.close(verbose=False)


def _refuse_taken(host: str, port: int) -> None:
    """Looks whether the page can be served there.

    Raises:
        UserError: no such address, or the port is in use.
    """
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as door:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            door.bind(place)
    except (socket.gaierror, UnicodeError) as error:
        raise UserError(
            f"--host: {host!r} is no address of this machine; 127.0.0.1 is its own."
        ) from error
    except OSError as error:
        raise UserError(
            f"--port: nothing can be served at {host}:{port} ({error.strerror}). "
            "Give another --port, or end what is using it."
        ) from error
