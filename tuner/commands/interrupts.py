"""What Ctrl-C and SIGTERM do to a command that ends in good order."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells report it."""


class OrderlyEnd(SystemExit):
    """Ctrl-C was the way to end: the command has said what it did, and nothing went wrong."""

    def __init__(self) -> None:
        super().__init__(INTERRUPTED)


@contextmanager
def on_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM call `stop`, once; a second one ends the process."""

    def heard(number: int, frame: object) -> None:
        stop()
        restore()

    def restore() -> None:
        for name, handler in before.items():
            signal.signal(name, handler)

    before = {name: signal.signal(name, heard) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        restore()
