"""What a ScaledObject with one Prometheus trigger is told: KEDA's fields, with its defaults.

Names, defaults and meaning as in `content/docs/2.20/reference/scaledobject-spec.md` of
kedacore/keda-docs (commit a55c5d345e) and `controllers/keda/hpa.go` of kedacore/keda (commit
8b4f083ca8). Left out: several triggers and `scalingModifiers` (the metric is any sum of fields),
`initialCooldownPeriod`, and the annotations that pause.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Literal

from policies.hpa_spec import Behavior, HpaConfig, MetricSpec, TargetType
from tuner.core.errors import ConfigError

FallbackBehavior = Literal[
    "static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"
]
FALLBACK_BEHAVIORS: tuple[FallbackBehavior, ...] = (
    "static",
    "currentReplicas",
    "currentReplicasIfHigher",
    "currentReplicasIfLower",
)

DEFAULT_METRIC = "running+queue_depth"
"""Requests in the engines, served or waiting. Of the waiting alone there are none until a replica
is full, and then it is too late by a cold start."""
DEFAULT_SHARE = 0.7
"""Share of `batch_size` that is a replica's threshold unless one is given: a full batch is where
waiting begins."""


@dataclass(frozen=True)
class Fallback:
    """`spec.fallback`: a count to stand in for a metric that cannot be read."""

    replicas: int
    """>= 0."""
    failures: int = 3
    """failureThreshold, >= 0: so many in a row are passed on to the HPA first, which then stays."""
    behavior: FallbackBehavior = "static"
    """The count itself, the count in force, or the larger or smaller of the two."""

    def __post_init__(self) -> None:
        if self.replicas < 0 or self.failures < 0:
            raise ConfigError(
                f"keda: the fallback is {self.replicas} replicas after {self.failures} failures; "
                "expected 0 or more of both"
            )


@dataclass(frozen=True)
class KedaConfig:
    """One ScaledObject, and the flags of the cluster that runs its HPA."""

    threshold: float
    """In the metric's unit, > 0: per replica, or for the fleet where `target_type` is Value."""
    metric: str = DEFAULT_METRIC
    """The query: a field of the Observation or a sum of several."""
    target_type: TargetType = "AverageValue"
    """metricType of the trigger."""
    activation: float = 0.0
    """activationThreshold: active above it, not at it."""
    ignore_null: bool = True
    """ignoreNullValues: an empty answer, NaN or infinity counts as 0. So a fleet whose metrics
    vanish is scaled down. False: it counts as a failure."""
    min_replicas: int = 0
    """minReplicaCount. 0: scaled to zero while the trigger is not active."""
    max_replicas: int = 100
    idle: bool = False
    """idleReplicaCount 0: to zero while not active, and at least `min_replicas` otherwise. No other
    count is supported by KEDA (kedacore/keda issue 2314)."""
    polling_s: float = 30.0
    """pollingInterval: how often KEDA itself looks, which decides between 0 and not 0 only."""
    cooldown_s: float = 300.0
    """cooldownPeriod: how long the trigger has not been active before 0."""
    fallback: Fallback | None = None
    behavior: Behavior | None = None
    """horizontalPodAutoscalerConfig.behavior; absent by default, as in HpaConfig."""
    tolerance: float = HpaConfig.tolerance
    downscale_stabilization_s: float = HpaConfig.downscale_stabilization_s
    sync_period_s: float = 15.0
    """Time between two calls, > 0: the HPA's sync period."""

    def __post_init__(self) -> None:
        if not (isfinite(self.threshold) and self.threshold > 0):
            raise ConfigError(f"keda: threshold is {self.threshold}; expected a number above 0")
        if self.idle and self.min_replicas < 1:
            raise ConfigError(
                f"keda: idle_replicas needs a min_replicas above 0 to return to, and it is "
                f"{self.min_replicas}; leave idle_replicas out, 0 is where it goes anyway"
            )
        if not (self.polling_s > 0 and self.cooldown_s >= 0):
            raise ConfigError(
                f"keda: polling_s is {self.polling_s} and cooldown_s is {self.cooldown_s}; "
                "expected above 0, and 0 or more"
            )
        try:
            self.hpa  # noqa: B018 - made here, so that its mistakes show here
        except ConfigError as error:
            raise ConfigError(f"keda: {str(error).removeprefix('hpa: ')}") from error

    @cached_property
    def trigger(self) -> MetricSpec:
        """The trigger as the one metric of the HPA."""
        return MetricSpec(self.metric, self.threshold, "External", self.target_type)

    @cached_property
    def hpa(self) -> HpaConfig:
        """The HorizontalPodAutoscaler that KEDA makes of this."""
        return HpaConfig(
            metrics=(self.trigger,),
            min_replicas=self.woken,
            max_replicas=self.max_replicas,
            behavior=self.behavior,
            tolerance=self.tolerance,
            downscale_stabilization_s=self.downscale_stabilization_s,
            sync_period_s=self.sync_period_s,
        )

    @property
    def woken(self) -> int:
        """Fewest replicas while there are any."""
        return max(1, self.min_replicas)
