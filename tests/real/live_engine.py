"""An engine that works by the clock, and knows exactly what it has done."""

from __future__ import annotations

import time
from threading import Lock

from tests.live.engine_page import Answer, EnginePage

LATENCIES_S = (0.03, 0.05, 0.055, 0.2)
"""TTFT in turn: a quarter in 0.02..0.04, half in 0.04..0.06, a quarter in 0.1..0.25."""


AT_WORK = 5
"""Requests in flight, at any time."""


class LiveEngine:
    """Finishes requests at a steady rate, brought up to date at every scrape.

    Args:
        rate: requests/s.
        restart_at: the scrape that finds a new process, whose counters began at zero.
    """

    def __init__(self, rate: float, restart_at: int | None = None) -> None:
        self._rate = rate
        self._restart_at = restart_at
        self._lock = Lock()
        self._began_s = time.monotonic()
        self._page = EnginePage()
        self._idle = False
        self.done = 0
        """Requests finished, over all processes."""
        self.first_seen: int | None = None
        """`done` at the first scrape."""
        self.scrapes = 0

    def rest(self) -> None:
        """Finish no more requests."""
        with self._lock:
            self._idle = True

    def __call__(self, path: str, headers: object) -> Answer:
        with self._lock:
            self.scrapes += 1
            if self.scrapes == self._restart_at:
                self._page = EnginePage()
            due = int((time.monotonic() - self._began_s) * self._rate)
            while self.done < due and not self._idle:
                ttft_s = LATENCIES_S[self.done % len(LATENCIES_S)]
                self._page.finish(prompt=24, output=16, ttft_s=ttft_s, tpot_s=0.02)
                self.done += 1
            if self.first_seen is None:
                self.first_seen = self.done
            self._page.running.set(AT_WORK)
            return Answer(self._page.text().encode())
