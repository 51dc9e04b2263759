"""Who runs the replicas of a target: Kubernetes, this host, or the sandbox."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from tuner.core.faults import Fault
from tuner.core.observation import ReplicaState
from tuner.engines.engine import Replica


@dataclass(frozen=True)
class Member:
    """One replica as its orchestrator sees it."""

    name: str
    state: ReplicaState
    age_s: float
    """Seconds since it was asked for."""
    replica: Replica | None
    """Where it answers; None while it has no address."""


@dataclass(frozen=True)
class PoolState:
    """A target's replicas at one look."""

    wanted: int
    """Replicas asked for, by whoever asked last."""
    members: tuple[Member, ...]
    version: str | None = None
    """What a write must quote so that nothing is overwritten unseen; None where there is no such
    thing."""
    faults: tuple[Fault, ...] = ()
    """Troubles that the orchestrator noticed since the last look, such as a start that failed."""


class Pool(Protocol):
    """The replicas of one target. Every call has a time-out and raises FaultError."""

    def check(self, *, writes: bool) -> None:
        """Whether the controller may do here what it is about to do.

        Args:
            writes: False in shadow.

        Raises:
            ConfigError: another autoscaler owns the target, or a right is missing (or, in shadow,
                there is one too many); with the next move.
            FaultError: the orchestrator does not answer.
        """

    def look(self) -> PoolState:
        """The replicas now."""

    def scale(self, replicas: int, seen: PoolState) -> int:
        """Ask for so many replicas, read back, return what is asked for now.

        Raises:
            FaultError: CONFLICT where someone wrote since `seen`, OUTCOME_UNKNOWN where the answer
                was lost and reading back did not settle it; `knob` is set.
        """

    def set_warmup(self, requests: int) -> None:
        """Warm-up requests of the replicas that start from now on."""

    def warmup(self) -> int | None:
        """Warm-up requests in force; None where the pool has no way to set them."""

    def close(self) -> None:
        """Let go of connections (and of nothing else)."""


@runtime_checkable
class Noting(Protocol):
    """A pool that can tell people beside it what was decided; not every one can."""

    def note(self, decision_id: str, text: str) -> None:
        """Leave a line where people look; that it fails hurts nobody and is not raised."""


@runtime_checkable
class Fenced(Protocol):
    """A pool that knows whether another controller writes to the target; not every one can."""

    def require(self) -> None:
        """Asked before anything is written to the engines, which have no fence of their own.

        Raises:
            FaultError: another controller may be writing; nothing may be written.
        """
