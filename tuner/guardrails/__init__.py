"""The guardrails. A new one: a file, and a line in TRIPS or LIMITS."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tuner.core.decision import Guardrails
from tuner.core.protocols import Limit, Trip
from tuner.guardrails.bounds import Bounds
from tuner.guardrails.max_delta import DEFAULT_STEPS, MaxDelta, Step
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


def bounds_alone() -> Guardrails:
    """What a rule meets where it runs by itself, as in its own project.

    How far it steps and what it does without data is part of the rule. The range of each knob is
    the cluster's own; a rule that raises is told, and moves nothing in that tick.
    """
    return Guardrails(trips=(PolicyFailure(),), limits=(Bounds(),))


def guardrails_with(*, max_age_s: float, steps: Mapping[str, Step]) -> Guardrails:
    """Every guardrail, with the widths that a user may set.

    Args:
        max_age_s: oldest sample, s, on which a policy is trusted.
        steps: knob -> largest step in one tick, in place of the default for that knob.
    """
    trips: dict[str, Trip] = {name: make() for name, make in TRIPS.items()}
    limits: dict[str, Limit] = {name: make() for name, make in LIMITS.items()}
    trips["stale_metrics"] = StaleMetrics(max_age_s=max_age_s)
    limits["max_delta"] = MaxDelta({**DEFAULT_STEPS, **steps})
    return Guardrails(tuple(trips.values()), tuple(limits.values()))


__all__ = [
    "LIMITS",
    "TRIPS",
    "Bounds",
    "MaxDelta",
    "PolicyFailure",
    "StaleMetrics",
    "bounds_alone",
    "default_guardrails",
    "guardrails_with",
]
