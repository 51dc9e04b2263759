"""One small real request on a period: a second opinion on latency and life.

It runs in its own thread and never holds a tick up; what a tick sees is the last result and its
age.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Condition, Thread

from tuner.config import ProbeConfig
from tuner.core.clock import Clock
from tuner.core.faults import Fault, FaultError, FaultReason
from tuner.engines.engine import Engine, Replica

LATE_PROBES = 3.0
"""A probe without a result for so many periods and its own time-out is stuck."""


@dataclass(frozen=True)
class Probed:
    """What came of one probe."""

    replica: str
    at_s: float
    """When it ended, on the caller's clock."""
    latency_s: float | None
    """From sending to the last token; None where it failed."""
    fault: Fault | None = None
    """Why it failed."""

    @property
    def live(self) -> bool:
        return self.fault is None


class Probe:
    """Sends a request to one replica after the other.

    Args:
        engine: knows how to ask; its calls must have a time-out.
        config: period and size.
        clock: stamps results. The period counts seconds of the system.
    """

    def __init__(self, engine: Engine, config: ProbeConfig, clock: Clock) -> None:
        self._engine = engine
        self._config = config
        self._clock = clock
        self._changed = Condition()
        self._replicas: tuple[Replica, ...] = ()
        self._turn = 0
        self._last: Probed | None = None
        self._heard_s = time.monotonic()
        self._closed = False
        self._thread = Thread(target=self._run, name="probe", daemon=True)
        self._thread.start()

    def aim(self, replicas: Sequence[Replica]) -> None:
        """Whom to ask from now on; the first call starts the first probe."""
        with self._changed:
            if replicas and not self._replicas:
                self._heard_s = time.monotonic()
            self._replicas = tuple(replicas)
            self._changed.notify_all()

    def last(self) -> Probed | None:
        """The newest result; None before the first."""
        with self._changed:
            return self._last

    def overdue_s(self) -> float | None:
        """System seconds without a result, where it is too many; None where all is well."""
        with self._changed:
            silent_s = time.monotonic() - self._heard_s
            allowed_s = LATE_PROBES * self._config.every_s + self._config.timeout_s
            return silent_s if self._replicas and silent_s > allowed_s else None

    def close(self) -> None:
        """Send no more; a request that is on its way ends by its own time-out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or bool(self._replicas))
                if self._closed:
                    return
                replica = self._replicas[self._turn % len(self._replicas)]
                self._turn += 1
            probed = self._ask(replica)
            with self._changed:
                self._last = probed
                self._heard_s = time.monotonic()
                self._changed.wait_for(lambda: self._closed, timeout=self._config.every_s)

    def _ask(self, replica: Replica) -> Probed:
        try:
            latency_s = self._engine.complete(replica, output_tokens=self._config.output_tokens)
        except FaultError as error:
            return Probed(replica.name, self._clock.now_s(), None, error.fault)
        except Exception as error:  # the outermost guard: the thread must live, and say why
            what = f"{replica.name}: the probe failed ({type(error).__name__}: {error})"
            fault = Fault(replica.name, FaultReason.BAD_ANSWER, what)
            return Probed(replica.name, self._clock.now_s(), None, fault)
        if latency_s > self._config.timeout_s:
            fault = Fault(
                replica.name,
                FaultReason.TIMED_OUT,
                f"{replica.name}: the probe took {latency_s:.1f} s; it may take "
                f"{self._config.timeout_s:g} s (probe.timeout_s)",
            )
            return Probed(replica.name, self._clock.now_s(), None, fault)
        return Probed(replica.name, self._clock.now_s(), latency_s)
