"""How a run and a comparison are set up: every number that steers them, with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from tuner.core.decision import Guardrails
from tuner.core.slo import Slo
from tuner.guardrails import Bounds, MaxDelta, PolicyFailure, StaleMetrics
from tuner.guardrails.max_delta import DEFAULT_STEPS, Step

Router = Literal["round_robin", "least_pending", "least_loaded"]


@dataclass(frozen=True)
class GuardrailConfig:
    """Widths of the guardrails; the same for every policy of a comparison."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    max_age_s: float = StaleMetrics.max_age_s
    """Oldest sample, s, on which a policy is trusted."""
    steps: Mapping[str, Step] = field(default_factory=dict)
    """Knob -> largest step in one tick, in place of the guardrail's default for that knob."""

    def build(self) -> Guardrails:
        """Every guardrail of the project with these widths."""
        return Guardrails(
            trips=(PolicyFailure(), StaleMetrics(max_age_s=self.max_age_s)),
            limits=(Bounds(), MaxDelta({**DEFAULT_STEPS, **self.steps})),
        )


@dataclass(frozen=True)
class RunConfig:
    """One simulated run, whatever the policy."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    slo: Slo = field(default_factory=Slo)
    """Objectives that each request meets or misses."""
    router: Router = "least_loaded"
    """How requests are spread over ready replicas; least_loaded is what gateways for language
    models do by default, because requests differ in length by orders of magnitude."""
    tick_s: float = 15.0
    """Seconds between two decisions; HPA's own sync period
    (--horizontal-pod-autoscaler-sync-period)."""
    jitter: float = 0.05
    """Sigma of the lognormal factor on each iteration's time. An assumption, not a measurement:
    small against the error of any profile, and enough that no two replicas move in lockstep."""
    max_replicas: int = 32
    """Most replicas that any policy may ask for."""
    initial_replicas: int | None = None
    """Replicas that are ready at the first arrival. None: a comparison starts every policy with
    the count that the sweep found for static, so that nobody pays for another's start."""
    overtime_s: float = 3600.0
    """Longest time after the last arrival in which requests may still end, s. Past an hour a
    request has missed every objective anyone sets."""
    fallback_target: float | None = None
    """Output tokens/s per ready replica that the fallback (HPA) aims for. None: a comparison takes
    what the sweep found for hpa."""
    guardrails: GuardrailConfig = field(default_factory=GuardrailConfig)
    """Widths of the guardrails."""
