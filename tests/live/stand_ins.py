"""A pool and a collector that keep state in memory, for tests of what stands between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.live.fake_engine import FakeEngine
from tuner.core.faults import Fault, FaultError, FaultReason
from tuner.core.observation import ReplicaState
from tuner.engines.engine import Replica
from tuner.live.metrics.measured import Measured
from tuner.live.pool import Member, PoolState


def member(name: str, engine: FakeEngine, state: ReplicaState = ReplicaState.READY) -> Member:
    return Member(name, state, 100.0, Replica(name, engine.url, engine.control_url, "tiny"))


@dataclass
class MemoryPool:
    """Replicas that a test adds and takes away; writes quote the version that was seen."""

    members: dict[str, Member] = field(default_factory=dict)
    wanted: int = 1
    version: int = 0
    warmups: int | None = 0
    asked: list[int] = field(default_factory=list)
    """What `scale` was called with."""
    look_fault: FaultError | None = None
    scale_fault: FaultError | None = None
    scale_is_done: bool = False
    """Whether a failing `scale` has done its work all the same."""
    closed: bool = False

    def check(self, *, writes: bool) -> None:
        """May do everything."""

    def look(self) -> PoolState:
        if self.look_fault is not None:
            raise self.look_fault
        return PoolState(self.wanted, tuple(self.members.values()), str(self.version))

    def scale(self, replicas: int, seen: PoolState) -> int:
        self.asked.append(replicas)
        if self.scale_fault is None and seen.version != str(self.version):
            raise trouble("pool", FaultReason.CONFLICT, knob="replicas")
        if self.scale_fault is None or self.scale_is_done:
            self.someone_sets(replicas)
        if self.scale_fault is not None:
            raise self.scale_fault
        return self.wanted

    def someone_sets(self, replicas: int) -> None:
        self.wanted = replicas
        self.version += 1

    def set_warmup(self, requests: int) -> None:
        self.warmups = requests

    def warmup(self) -> int | None:
        return self.warmups

    def close(self) -> None:
        self.closed = True


def trouble(
    where: str, reason: FaultReason, *, knob: str | None = None, retry_after_s: float | None = None
) -> FaultError:
    return FaultError(Fault(where, reason, f"{where}: {reason}", knob), retry_after_s=retry_after_s)


@dataclass
class Collector:
    """Gives what the test has put in."""

    measured: Measured = field(default_factory=lambda: Measured(age_s=1.0))
    asked: list[tuple[str, ...]] = field(default_factory=list)
    closed: bool = False

    def collect(self, members: Sequence[Member], *, at_s: float) -> Measured:
        self.asked.append(tuple(m.name for m in members))
        return self.measured

    def close(self) -> None:
        self.closed = True
