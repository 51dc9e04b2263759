"""What Ctrl-C and SIGTERM do to a command of this package: one sentence, and an exit code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from functools import wraps

EXIT_INTERRUPTED = 130
"""As shells report Ctrl-C."""

Main = Callable[[Sequence[str] | None], int]


def ends_on_interrupt(main: Main) -> Callable[..., int]:
    """The command, which returns EXIT_INTERRUPTED after Ctrl-C or SIGTERM and has said so."""

    @wraps(main)
    def ended(arguments: Sequence[str] | None = None) -> int:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            return main(arguments)
        except KeyboardInterrupt:
            print("error: interrupted; nothing half-written is left", file=sys.stderr)
            return EXIT_INTERRUPTED
        finally:
            signal.signal(signal.SIGTERM, before)

    return ended
