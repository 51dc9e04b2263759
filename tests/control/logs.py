"""Runs on simulated fleets that leave an audit log, for tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from envs.config import ScrapeConfig
from envs.simulator.cluster import SimulatedCluster
from policies import build_policy
from tests.envs import worlds
from tuner.control.audit_store import AuditStore, RunIdentity
from tuner.control.loop import ticks
from tuner.core.clock import Clock, VirtualClock
from tuner.core.decision import Decision, Receipt, Source
from tuner.core.faults import Fault, FaultReason
from tuner.core.history import History
from tuner.core.knobs import KnobSettings
from tuner.core.observation import Observation
from tuner.core.protocols import Audit, Cluster, Policy
from tuner.core.trace import Trace
from tuner.guardrails import default_guardrails

EPOCH_S = 1_795_000_000.0
"""A clock as a live controller has it: seconds since 1970."""

IDENTITY = RunIdentity(
    policy="hpa",
    policy_digest=None,
    config_digest="c" * 64,
    version="0.1.0",
    authority="direct",
)


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'audit.db'}"


@dataclass
class Later:
    """A cluster whose clock shows `by_s` more: simulated time as Unix time."""

    cluster: Cluster
    by_s: float = EPOCH_S

    def observe(self) -> Observation:
        seen = self.cluster.observe()
        return Observation(**{**vars(seen), "at_s": seen.at_s + self.by_s})

    def apply(self, decision: Decision) -> Receipt:
        receipt = self.cluster.apply(decision)
        return Receipt(receipt.at_s + self.by_s, receipt.applied, receipt.faults)


@dataclass
class Watched:
    """A cluster in shadow: the user's own rule moves it, and whoever watches is refused."""

    cluster: SimulatedCluster
    rule: Policy
    history: History = field(default_factory=lambda: History(worlds.knobs()))

    def observe(self) -> Observation:
        seen = self.cluster.observe()
        self.history = self.history.observed(seen)
        proposal = self.rule.propose(self.history)
        target = KnobSettings({knob: round(value) for knob, value in proposal.settings.items()})
        moved = Decision(
            seen.at_s, proposal, proposal, seen.settings, target, source=Source.POLICY, verdicts=()
        )
        self.cluster.apply(moved)
        self.history = self.history.decided(moved)
        return seen

    def apply(self, decision: Decision) -> Receipt:
        fault = Fault("kubernetes", FaultReason.SHADOW, "shadow mode: nothing is written")
        at_s = self.history.now.at_s + 0.25
        return Receipt(at_s, KnobSettings(), (fault,) if decision.changes else ())


def simulated(clock: Clock, *, seed: int = 1, trace: Trace | None = None) -> SimulatedCluster:
    return SimulatedCluster(
        trace or worlds.trace(),
        worlds.PROFILE,
        worlds.knobs(),
        clock,
        initial=KnobSettings(replicas=2),
        seed=seed,
        jitter=0.03,
        scrape=ScrapeConfig(outage=0.1),
    )


def hpa(target: float = 150.0) -> Policy:
    return build_policy("hpa", {"target": target}, worlds.knobs(), tick_s=worlds.TICK_S)


def run(
    cluster: Cluster,
    clock: Clock,
    audit: Audit,
    *,
    history: History | None = None,
    policy: Policy | None = None,
    mode: str = "shadow",
) -> Iterator[History]:
    return ticks(
        cluster,
        clock,
        history or History(worlds.knobs()),
        policy or hpa(),
        default_guardrails(),
        hpa(300.0),
        audit,
        mode,
        every_s=worlds.TICK_S,
    )


def shadow(
    store: AuditStore,
    target: str,
    n: int,
    *,
    identity: RunIdentity = IDENTITY,
    trace: Trace | None = None,
    policy: Policy | None = None,
) -> None:
    """`n` ticks of a policy watching a fleet that HPA runs."""
    clock = VirtualClock(worlds.TICK_S)
    cluster = Later(Watched(simulated(clock, trace=trace), hpa(300.0)))
    writer = store.writer(target, identity=identity)
    list(islice(run(cluster, clock, writer, policy=policy), n))
