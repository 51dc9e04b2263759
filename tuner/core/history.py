"""What a policy may look at: recent observations, recent decisions and its own memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tuner.core.knobs import KnobSpace
from tuner.core.observation import Observation

if TYPE_CHECKING:
    from tuner.core.decision import Decision

Memory = tuple[float, ...]
"""A policy's state between ticks: plain numbers, NaN for an empty place. Serialisable, so that a
restarted controller goes on where the audit log ends."""

LENGTH = 64
"""Observations kept. 16 minutes of 15 s ticks: longer windows live in a policy's memory."""


@dataclass(frozen=True)
class History:
    """The only input of a policy; a new value each tick."""

    knobs: KnobSpace
    observations: tuple[Observation, ...] = ()
    """Oldest first, at most LENGTH."""
    decisions: tuple[Decision, ...] = ()
    """Oldest first, at most LENGTH."""
    memory: Memory = ()
    """What the policy left in its last proposal; empty before the first."""
    fallback_memory: Memory = ()
    """The same for the fallback; a policy does not look at it."""

    @property
    def now(self) -> Observation:
        """The latest observation.

        Raises:
            IndexError: before the first one.
        """
        return self.observations[-1]

    def observed(self, observation: Observation) -> History:
        """This history, one observation later.

        One from before the latest was made by a clock that has been set back: then the history
        begins anew. Every window would hold entries from the future, and a limit on the replicas
        added in a minute would forbid more of them until the old time comes round again.
        """
        if self.observations and observation.at_s < self.now.at_s:
            return History(self.knobs, (observation,))
        return replace(self, observations=(*self.observations, observation)[-LENGTH:])

    def decided(self, decision: Decision) -> History:
        """This history, one decision later. A policy that failed keeps its old memory."""
        policy, fallback = decision.proposal, decision.fallback
        return replace(
            self,
            decisions=(*self.decisions, decision)[-LENGTH:],
            memory=policy.memory if policy is not None else self.memory,
            fallback_memory=fallback.memory if fallback is not None else self.fallback_memory,
        )

    def for_fallback(self) -> History:
        """This history as the fallback sees it: with its own memory."""
        return replace(self, memory=self.fallback_memory)
