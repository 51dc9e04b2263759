"""A small sandbox in virtual time, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from envs.sandbox import SandboxCluster
from envs.sandbox.cluster import Instance
from tests.envs import worlds
from tuner.core.clock import VirtualClock

EPOCH_S = 1_795_000_000.0


class World:
    """A cluster and the hand on its clock."""

    def __init__(self, *, replicas: int = 3, max_replicas: int = 6, **options: Any) -> None:
        self.clock = VirtualClock(EPOCH_S)
        self.cluster = SandboxCluster(
            options.pop("trace", None) or worlds.trace(),
            options.pop("profile", worlds.PROFILE),
            self.clock,
            replicas=replicas,
            max_replicas=max_replicas,
            **{"seed": 3, **options},
        )

    def at(self, seconds: float) -> SandboxCluster:
        """The cluster as it is so many seconds after its beginning."""
        self.clock.sleep_until(EPOCH_S + seconds)
        self.cluster.look()
        return self.cluster

    @property
    def every(self) -> Iterable[Instance]:
        """All instances that ever were."""
        return [*self.cluster.gone, *self.cluster.instances.values()]
