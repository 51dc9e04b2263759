"""Engines that can only be watched: metrics, health and a completion; no knob moves."""

from __future__ import annotations

from tuner.core.faults import FaultError, FaultReason
from tuner.core.knobs import KnobSettings
from tuner.engines.capability import REPLICAS, WARMUP, StartUp
from tuner.engines.engine import (
    Capability,
    EngineState,
    Health,
    Metrics,
    Replica,
    Standing,
)
from tuner.engines.http import EngineHttp
from tuner.engines.openai import address, complete
from tuner.engines.settle import fault
from tuner.engines.states import silent

WHY = "this engine reads it at start-up only"


class WatchedEngine:
    """An engine of which only metrics and health are known.

    Args:
        start_up: start-up argument of `batch_size` and of `threads`.
    """

    standing: Standing = "from documentation"

    def __init__(
        self, http: EngineHttp, name: str, metrics: Metrics, start_up: dict[str, StartUp]
    ) -> None:
        self._http = http
        self.name = name
        self.metrics = metrics
        self._start_up = start_up

    def health(self, replica: Replica) -> Health:
        """`/health`; a 503 is an answer, so something lives."""
        try:
            self._http.get(replica.name, address(replica, "/health"))
        except FaultError as trouble:
            starting = trouble.fault.reason is FaultReason.NOT_READY
            return Health(live=starting, ready=False, why=str(trouble))
        return Health(live=True, ready=True)

    def complete(self, replica: Replica, *, output_tokens: int = 1) -> float:
        return complete(self._http, replica, output_tokens=output_tokens)

    def capabilities(self, replica: Replica) -> tuple[Capability, ...]:
        """Known without asking the replica."""
        batch, threads = (
            self._start_up[knob].fixed(knob, WHY) for knob in ("batch_size", "threads")
        )
        return batch, REPLICAS, threads, WARMUP

    def read(self, replica: Replica) -> EngineState:
        """No knobs: what is in force cannot be asked."""
        return silent(self.name, replica)

    def set(
        self,
        replica: Replica,
        wanted: KnobSettings,
        seen: EngineState,
        *,
        ttl_s: float | None,
        reason: str,
    ) -> EngineState:
        for knob in wanted:
            raise fault(replica, FaultReason.NOT_MOVABLE, f"{knob}: {WHY}; nothing was sent", knob)
        return seen

    def release(self, replica: Replica, seen: EngineState) -> EngineState:
        """Nothing was ever moved."""
        return seen
