"""Authority `floor`: a native rule owns the replicas, and a policy may only raise its minimum.

What a Kubernetes HPA does while somebody else writes its `minReplicas`: its own recommendation
stands, windows and all, and the count never falls below the minimum
(pkg/controller/podautoscaler/horizontal.go, `normalizeDesiredReplicas`). A policy that acts like
this can buy attainment and never save money; whoever dies, the native rule goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tuner.core.decision import Proposal
from tuner.core.history import History
from tuner.core.protocols import Policy


@dataclass(frozen=True)
class FloorPolicy:
    """A policy under authority `floor`; its other knobs are its own."""

    policy: Policy
    native: Policy
    native_memory: int
    """Numbers that the native rule remembers; they stand in front in the memory."""

    @property
    def name(self) -> str:
        return self.policy.name

    def propose(self, history: History) -> Proposal:
        cut = self.native_memory
        native = self.native.propose(replace(history, memory=history.memory[:cut]))
        floor = self.policy.propose(replace(history, memory=history.memory[cut:]))
        return Proposal(
            settings={**floor.settings, **_raised(native, floor, history)},
            memory=(*native.memory, *floor.memory),
            raw=floor.raw,
            log_prob=floor.log_prob,
            why=f"minimum by {self.policy.name}: {floor.why}; {self.native.name}: {native.why}",
        )


def _raised(native: Proposal, floor: Proposal, history: History) -> dict[str, float]:
    """Replicas: the larger of both. A native rule that cannot tell leaves its count as it is."""
    count = native.settings.get("replicas", history.now.settings.get("replicas"))
    least = floor.settings.get("replicas")
    known = [value for value in (count, least) if value is not None]
    return {"replicas": max(known)} if known else {}
