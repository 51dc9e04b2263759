"""A target that is watched and never touched."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from tuner.core.decision import Decision, Receipt
from tuner.core.faults import Fault, FaultReason
from tuner.core.knobs import KnobSettings
from tuner.core.observation import Observation

WHERE = "shadow"


class Watched(Protocol):
    """What a shadow needs of a cluster: nothing here writes."""

    def observe(self) -> Observation: ...

    def close(self) -> None: ...


class Shadow:
    """Any cluster behind a face that cannot write.

    It keeps the two calls it needs and not the cluster, so there is no path from here to a write.

    Args:
        cluster: what is watched.
        move: knobs that an active controller would write; None: every knob.
    """

    def __init__(self, cluster: Watched, *, move: Collection[str] | None = None) -> None:
        self._observe: Callable[[], Observation] = cluster.observe
        self._close: Callable[[], None] = cluster.close
        self._move = None if move is None else frozenset(move)
        self._at_s = 0.0

    def observe(self) -> Observation:
        observation = self._observe()
        self._at_s = observation.at_s
        return observation

    def apply(self, decision: Decision) -> Receipt:
        """Refused: one fault per knob that would have been written, saying from what to what."""
        faults = tuple(
            Fault(WHERE, FaultReason.SHADOW, f"shadow: {knob} {old} -> {new} is not written", knob)
            for knob, (old, new) in decision.changes.items()
            if self._move is None or knob in self._move
        )
        return Receipt(decision.at_s, KnobSettings(), faults)

    def release(self) -> Receipt:
        """Nothing was ever taken, so nothing is given back."""
        return Receipt(self._at_s, KnobSettings())

    def close(self) -> None:
        self._close()
