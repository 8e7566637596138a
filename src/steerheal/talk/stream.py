"""Work that shows how far it is, in a thread of its own, read as it comes by another."""

from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Event, Thread

from steerheal.talk.talk import Said, Watch


def streamed(work: Callable[[Watch], object], stop: Event) -> Iterator[Said]:
    """The newest of what `work` gives its watch, as it comes; `stop` ends it.

    It works in a thread of its own, which ends by itself when nobody listens any more.

    Raises:
        UserError: what `work` raised.
    """
    found: SimpleQueue[Said | BaseException | None] = SimpleQueue()

    def watch(said: Said) -> bool:
        found.put(said)
        return stop.is_set()

    def run() -> None:
        try:
            work(watch)
        except BaseException as error:  # noqa: BLE001  it is raised where somebody listens
            found.put(error)
        found.put(None)

    Thread(target=run, daemon=True).start()
    try:
        while (item := found.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            if found.empty():  # what is older than the next one need not be sent
                yield item
    finally:
        stop.set()
