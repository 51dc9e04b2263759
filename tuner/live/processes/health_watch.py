"""The health of several replicas, without waiting for the slow ones."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from time import monotonic

from tuner.core.faults import FaultError
from tuner.engines.engine import Engine, Health, Replica
from tuner.live.steering.fan_out import FanOut

OLDEST_S = 60.0
"""An older answer counts for nothing, s. A health call has a time-out, but an engine that sends its
headers byte by byte never meets it."""


class HealthWatch:
    """Asks every replica at each look; an answer that comes later counts at the next one.

    Args:
        concurrency: most calls at once.
        oldest_s: how long an answer counts while the next one is awaited, s.
    """

    def __init__(self, engine: Engine, concurrency: int, *, oldest_s: float = OLDEST_S) -> None:
        self._engine = engine
        self._fan_out = FanOut(concurrency, "health")
        self._oldest_s = oldest_s
        self._last: dict[str, tuple[float, Health]] = {}

    def look(self, replicas: Mapping[str, Replica], *, wait_s: float) -> dict[str, Health]:
        """The last known health; a replica that has never answered is absent."""
        for name in set(self._last) - set(replicas):
            self._last.pop(name, None)
        calls = {name: partial(self._ask, name, replica) for name, replica in replicas.items()}
        for name, answer in self._fan_out.each(calls, timeout_s=wait_s).items():
            if isinstance(answer, FaultError):
                self._keep(name, Health(live=False, ready=False, why=answer.fault.sentence))
        # Late answers still come in: no walk over what their threads write to.
        last = {name: self._last.get(name) for name in replicas}
        return {name: self._now(*known) for name, known in last.items() if known is not None}

    def vouch(self, name: str) -> None:
        """Count it as ready until it answers: it has just shown so otherwise."""
        self._keep(name, Health(live=True, ready=True))

    def _now(self, at_s: float, health: Health) -> Health:
        """What an answer is worth now."""
        age_s = monotonic() - at_s
        if age_s <= self._oldest_s:
            return health
        why = f"its health call has not come back; the last answer is {age_s:.0f} s old"
        return Health(live=False, ready=False, why=why)

    def _ask(self, name: str, replica: Replica) -> None:
        self._keep(name, self._engine.health(replica))

    def _keep(self, name: str, health: Health) -> None:
        self._last[name] = (monotonic(), health)

    def close(self) -> None:
        self._fan_out.close()
