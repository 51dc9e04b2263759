"""Where time comes from. Only `WallClock` reads the system's clock."""

from __future__ import annotations

import time
from threading import Event
from typing import Protocol


class Clock(Protocol):
    """Seconds on a scale of its own, never falling."""

    def now_s(self) -> float: ...

    def sleep_until(self, at_s: float) -> None:
        """Come back at `at_s`, at once if it has passed."""


class WallClock:
    """Seconds since the Unix epoch.

    Args:
        woken: ends every sleep at once when set, so that a controller that is told to stop does
            not sleep on; None: nothing does.
    """

    def __init__(self, woken: Event | None = None) -> None:
        self._woken = woken or Event()

    def now_s(self) -> float:
        return time.time()

    def sleep_until(self, at_s: float) -> None:
        _wait(self._woken, at_s - self.now_s())


class ScaledClock:
    """The system's clock, running `speed` times as fast since `epoch_s`, where both are equal.

    `woken` as of `WallClock`.
    """

    def __init__(self, speed: float, epoch_s: float, woken: Event | None = None) -> None:
        self._speed = speed
        self._epoch_s = epoch_s
        self._woken = woken or Event()

    def now_s(self) -> float:
        return self._epoch_s + (time.time() - self._epoch_s) * self._speed

    def sleep_until(self, at_s: float) -> None:
        _wait(self._woken, (at_s - self.now_s()) / self._speed)


def _wait(woken: Event, delay_s: float) -> None:
    if delay_s > 0:
        woken.wait(delay_s)


class VirtualClock:
    """Time that passes only when told to."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        return self._now_s

    def sleep_until(self, at_s: float) -> None:
        self._now_s = max(self._now_s, at_s)
