"""Trip `policy_failure`: the policy raised, or proposed what cannot be read."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.core.decision import Reason, Tick
from tuner.core.protocols import IntArray


@dataclass(frozen=True)
class PolicyFailure:
    """Trips on an exception, a value that is not finite, and a knob that does not exist."""

    name: str = "policy_failure"

    def check(self, tick: Tick) -> IntArray:
        return tick.fault

    def explain(self, reason: Reason, tick: Tick, row: int) -> str:
        detail = tick.fault_detail[row] if tick.fault_detail else ""
        return f"the policy failed ({reason.name}): {detail}" if detail else reason.name
