"""The guardrails. A new one: a file, and a line in TRIPS or LIMITS."""

from __future__ import annotations

from collections.abc import Callable

from tuner.core.decision import Guardrails
from tuner.core.protocols import Limit, Trip
from tuner.guardrails.bounds import Bounds
from tuner.guardrails.max_delta import MaxDelta
from tuner.guardrails.policy_failure import PolicyFailure
from tuner.guardrails.stale_metrics import StaleMetrics

TRIPS: dict[str, Callable[[], Trip]] = {
    "policy_failure": PolicyFailure,
    "stale_metrics": StaleMetrics,
}

LIMITS: dict[str, Callable[[], Limit]] = {
    "bounds": Bounds,
    "max_delta": MaxDelta,
}


def default_guardrails() -> Guardrails:
    """Every guardrail with its default widths."""
    return Guardrails(
        trips=tuple(make() for make in TRIPS.values()),
        limits=tuple(make() for make in LIMITS.values()),
    )


__all__ = [
    "LIMITS",
    "TRIPS",
    "Bounds",
    "MaxDelta",
    "PolicyFailure",
    "StaleMetrics",
    "default_guardrails",
]
