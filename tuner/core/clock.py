"""Where time comes from. Only `WallClock` reads the system's clock."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds on a scale of its own, never falling."""

    def now_s(self) -> float: ...

    def sleep_until(self, at_s: float) -> None:
        """Come back at `at_s`, at once if it has passed."""


class WallClock:
    """Seconds since the Unix epoch."""

    def now_s(self) -> float:
        return time.time()

    def sleep_until(self, at_s: float) -> None:
        delay_s = at_s - self.now_s()
        if delay_s > 0:
            time.sleep(delay_s)


class VirtualClock:
    """Time that passes only when told to."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        return self._now_s

    def sleep_until(self, at_s: float) -> None:
        self._now_s = max(self._now_s, at_s)
