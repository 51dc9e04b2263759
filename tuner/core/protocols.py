"""The protocols between the pure core and what surrounds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from tuner.core.history import History
from tuner.core.observation import Observation

if TYPE_CHECKING:
    from tuner.core.decision import Decision, Proposal, Reason, Receipt, Tick

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


class Policy(Protocol):
    """Proposes settings. Pure: the same history gives the same proposal."""

    @property
    def name(self) -> str: ...

    def propose(self, history: History) -> Proposal:
        """Settings wanted after `history.now`."""


class Trip(Protocol):
    """A guardrail that asks: may the policy be trusted now?"""

    @property
    def name(self) -> str: ...

    def check(self, tick: Tick) -> IntArray:
        """`(n,)` codes of `Reason`, 0 where the policy may be trusted. Never raises."""

    def explain(self, reason: Reason, tick: Tick, row: int) -> str:
        """The sentence for a person, with the value found and the value expected."""


class Limit(Protocol):
    """A guardrail that clamps whoever decides."""

    @property
    def name(self) -> str: ...

    @property
    def reason(self) -> Reason: ...

    def interval(self, tick: Tick, fallback: BoolArray) -> tuple[FloatArray, FloatArray]:
        """Allowed low and high, each `(n, knobs)`; -inf and inf where there is no limit.

        Args:
            tick: what is known and proposed.
            fallback: `(n,)`, where the fallback decides: a limit may be wider there.
        """

    def explain(self, tick: Tick, row: int, knob: int, wanted: float, allowed: float) -> str:
        """The sentence for a person: from what to what, and why."""


class Cluster(Protocol):
    """A target as the loop sees it: live, simulated, recorded or shadowed."""

    def observe(self) -> Observation:
        """One window of measurements, up to now."""

    def apply(self, decision: Decision) -> Receipt:
        """Move towards `decision.target`; what happened is in the receipt."""


class Audit(Protocol):
    """Where every decision is written down: before acting, and after."""

    def intent(self, mode: str, observation: Observation, decision: Decision) -> None: ...

    def receipt(self, decision: Decision, receipt: Receipt) -> None: ...
