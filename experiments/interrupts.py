"""What Ctrl-C does to a command of this package: one sentence, and the exit code of `tuner`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import wraps

EXIT_INTERRUPTED = 130
"""As shells report Ctrl-C."""

Main = Callable[[Sequence[str] | None], int]


def ends_on_interrupt(main: Main) -> Callable[..., int]:
    """The command, which returns EXIT_INTERRUPTED after Ctrl-C and has said so."""

    @wraps(main)
    def ended(arguments: Sequence[str] | None = None) -> int:
        try:
            return main(arguments)
        except KeyboardInterrupt:
            print("error: interrupted; nothing half-written is left", file=sys.stderr)
            return EXIT_INTERRUPTED

    return ended
