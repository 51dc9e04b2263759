"""A cluster and an audit log that are watched: every tick leaves figures, signs of life and a line.

They wrap what the loop is handed, so that the tick itself knows nothing of any of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from tuner.control.health import Pulse
from tuner.control.metrics import ControllerMetrics
from tuner.core.decision import Decision, Receipt
from tuner.core.errors import TunerError
from tuner.core.faults import Fault, FaultReason
from tuner.core.observation import Observation
from tuner.core.protocols import Audit, Cluster

MOST_FAULTS = 10
"""New faults that are told one by one in a tick; a fleet that vanishes has one each."""


class NumberedAudit(Audit, Protocol):
    """An audit log whose records can be asked for by number."""

    @property
    def last_id(self) -> int | None:
        """Of the last intent that was written; None where there is none."""


class WatchedCluster:
    """Measures how long reading and writing take, and keeps the faults of both."""

    def __init__(self, cluster: Cluster, target: str, metrics: ControllerMetrics) -> None:
        self._cluster = cluster
        self._target = target
        self._metrics = metrics

    def observe(self) -> Observation:
        started_s = time.perf_counter()
        observation = self._cluster.observe()
        self._metrics.observed(self._target, observation, time.perf_counter() - started_s)
        return observation

    def apply(self, decision: Decision) -> Receipt:
        started_s = time.perf_counter()
        receipt = self._cluster.apply(decision)
        self._metrics.applies.labels(self._target).observe(time.perf_counter() - started_s)
        self._metrics.applied(self._target, decision, receipt)
        return receipt


class WatchedAudit:
    """Counts decisions, tells each in one line, and notes that the target lives."""

    def __init__(
        self,
        audit: NumberedAudit,
        pulse: Pulse,
        metrics: ControllerMetrics,
        log: FilteringBoundLogger,
    ) -> None:
        self._audit = audit
        self._pulse = pulse
        self._metrics = metrics
        self._log = log
        self._reading: tuple[Fault, ...] = ()
        self._open: dict[tuple[str, FaultReason, str | None], Fault] = {}

    def intent(self, mode: str, observation: Observation, decision: Decision) -> None:
        try:
            self._audit.intent(mode, observation, decision)
        except TunerError as error:
            self._failed(error)
            raise
        self._reading = observation.faults
        self._metrics.decided(self._pulse.target, decision)

    def receipt(self, decision: Decision, receipt: Receipt) -> None:
        self._tell(decision, receipt)
        try:
            self._audit.receipt(decision, receipt)
        except TunerError as error:
            self._failed(error)
            raise
        self._pulse.audit_fault = ""
        self._pulse.failure = ""
        self._pulse.decided_s = time.monotonic()

    def _failed(self, error: TunerError) -> None:
        self._pulse.audit_fault = str(error)
        self._metrics.audit_failures.labels(self._pulse.target).inc()

    def _tell(self, decision: Decision, receipt: Receipt) -> None:
        moves = [f"{knob} {old} -> {new}" for knob, (old, new) in decision.changes.items()]
        self._log.info(
            "decision",
            id=self._audit.last_id,
            source=str(decision.source),
            moves=", ".join(moves) or "no change",
            why=decision.why or None,
            applied=dict(receipt.applied),
            at_s=decision.at_s,
        )
        refused = [f for f in receipt.faults if f.reason is not FaultReason.SHADOW]
        self._tell_faults([*self._reading, *refused])

    def _tell_faults(self, faults: Iterable[Fault]) -> None:
        """Each trouble once, when it begins and when it is over."""
        now = {(fault.where, fault.reason, fault.knob): fault for fault in faults}
        new = [fault for key, fault in now.items() if key not in self._open]
        for fault in new[:MOST_FAULTS]:
            self._log.warning("fault", **fault.to_json())
        if len(new) > MOST_FAULTS:
            self._log.warning("faults", more=len(new) - MOST_FAULTS)
        over = [fault for key, fault in self._open.items() if key not in now]
        for fault in over[:MOST_FAULTS]:
            self._log.info("fault is over", where=fault.where, reason=str(fault.reason))
        self._open = now
