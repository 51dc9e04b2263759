"""Targets and audit logs that keep state, for a controller without a cluster.

`python -m tests.control.standins` runs the service on one of them until it is told to stop.
"""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tuner.control.audit_store import RunIdentity
from tuner.control.logs import logger_to
from tuner.control.metrics import ControllerMetrics
from tuner.control.service import RunningCluster, Service, TargetLoop, TargetPlan
from tuner.core.audit import MemoryAudit
from tuner.core.clock import Clock, WallClock
from tuner.core.decision import Decision, Proposal, Receipt
from tuner.core.errors import PermanentError
from tuner.core.faults import Fault
from tuner.core.history import History
from tuner.core.knobs import KnobSettings
from tuner.core.observation import Observation
from tuner.engines.engine import Capability
from tuner.guardrails import default_guardrails
from tuner.knobs import knob_space

KNOBS = knob_space(replicas=(1, 10), batch_size=(1, 64))


@dataclass
class Fleet:
    """A healthy fleet that obeys at once, and gets its batch size back when it is released."""

    clock: Clock = field(default_factory=WallClock)
    settings: KnobSettings = field(default_factory=lambda: KnobSettings(replicas=4, batch_size=64))
    calls: list[str] = field(default_factory=list)
    faults: tuple[Fault, ...] = ()
    write_faults: tuple[Fault, ...] = ()
    before_observe: Callable[[int], None] = lambda number: None
    before_release: Callable[[], None] = lambda: None
    before_probe: Callable[[], None] = lambda: None
    observed: int = 0

    def observe(self) -> Observation:
        self.observed += 1
        self.calls.append("observe")
        self.before_observe(self.observed)
        return Observation(
            at_s=self.clock.now_s(),
            window_s=60.0,
            age_s=1.0,
            settings=self.settings,
            ages_s={"qps": 1.0},
            faults=self.faults,
            qps=10.0,
            output_tokens_per_s=2000.0,
            in_flight=5.0,
            ready_replicas=float(self.settings["replicas"]),
        )

    def apply(self, decision: Decision) -> Receipt:
        self.calls.append("apply")
        self.settings = self.settings.with_(**decision.target)
        return Receipt(self.clock.now_s(), decision.target, self.write_faults)

    def capabilities(self) -> tuple[Capability, ...]:
        self.before_probe()
        why = "the engine takes it while it runs"
        return (Capability("batch_size", True, "hot", "PATCH /v1/runtime_config", why),)

    def release(self) -> Receipt:
        self.calls.append("release")
        self.before_release()
        self.settings = self.settings.with_(batch_size=64)
        return Receipt(self.clock.now_s(), KnobSettings(batch_size=64))

    def close(self) -> None:
        self.calls.append("close")


class NumberedMemoryAudit(MemoryAudit):
    """Records in memory, numbered from 1; refuses while `broken`."""

    broken: str = ""
    last_id: int | None = None

    def intent(self, mode: str, observation: Observation, decision: Decision) -> None:
        if self.broken:
            raise PermanentError(self.broken)
        super().intent(mode, observation, decision)
        self.last_id = len(self.records)


@dataclass(frozen=True)
class Counts:
    """Wants one sequence less than it wanted last, from 60 down: its memory is its count."""

    name: str = "counts"

    def propose(self, history: History) -> Proposal:
        count = history.memory[0] - 1 if history.memory else 60.0
        return Proposal({"batch_size": count}, memory=(count,), why=f"the count is at {count:g}")


@dataclass
class Bench:
    """One target with everything around it."""

    fleet: Fleet
    audit: NumberedMemoryAudit
    loop: TargetLoop
    metrics: ControllerMetrics
    output: io.StringIO

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Log lines of one kind."""
        lines = [json.loads(line) for line in self.output.getvalue().splitlines()]
        return [line for line in lines if line["event"] == event]

    def figure(self, name: str, **labels: str) -> float | None:
        """A figure of this target."""
        target = {"target": self.loop.plan.name}
        return self.metrics.registry.get_sample_value(f"tuner_{name}", {**target, **labels})


def bench(
    name: str = "r1",
    *,
    fleet: Fleet | None = None,
    stop: threading.Event | None = None,
    every_s: float = 0.01,
    writes: bool = True,
    metrics: ControllerMetrics | None = None,
    connect: Callable[[], RunningCluster] | None = None,
    history: History | None = None,
) -> Bench:
    """A target that ticks fast."""
    clock = WallClock(stop)
    fleet = fleet or Fleet(clock)
    audit = NumberedMemoryAudit()
    metrics = metrics or ControllerMetrics()
    output = io.StringIO()
    plan = TargetPlan(
        name=name,
        mode="active" if writes else "shadow",
        identity=RunIdentity("counts", "d1" * 32, "c1" * 32, "0", "direct" if writes else "none"),
        every_s=every_s,
        clock=clock,
        policy=Counts(),
        fallback=Counts("fallback"),
        guardrails=default_guardrails(),
        history=history or History(KNOBS),
        audit=audit,
        connect=connect or (lambda: fleet),
        writes=writes,
    )
    loop = TargetLoop(plan, metrics, logger_to(output))
    return Bench(fleet, audit, loop, metrics, output)


def main(kind: str) -> int:
    """Runs one target until a signal: `well`; `hung`, which never comes back from a look; `far`,
    which is reached when a line comes in."""
    stop = threading.Event()
    log = logger_to(sys.stdout)

    def hang(number: int) -> None:
        log.info("hanging")
        threading.Event().wait()

    fleet = Fleet(before_release=lambda: log.info("releasing"))
    if kind == "hung":
        fleet.before_observe = hang

    def connect() -> Fleet:
        if kind == "far":
            log.info("reaching")
            sys.stdin.readline()
        return fleet

    made = bench(fleet=fleet, stop=stop, every_s=3600.0, connect=connect)
    loop = TargetLoop(made.loop.plan, made.metrics, log)
    service = Service([loop], stop, page=None, log=log)
    with service.hearing():
        service.connect()
        return service.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
