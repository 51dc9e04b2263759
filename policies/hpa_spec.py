"""What an HPA is told: the fields of autoscaling/v2, with Kubernetes' defaults.

Names, defaults and allowed ranges as in pkg/apis/autoscaling/v2/defaults.go and
pkg/apis/autoscaling/validation/validation.go of Kubernetes 1.36.2. Resource and ContainerResource
metrics are left out: they measure CPU and memory of containers, which say nothing about an LLM
engine, and no Observation holds them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from math import isfinite
from typing import Literal

from tuner.core.errors import ConfigError
from tuner.core.observation import FIELD_NAMES, REPLICA_FIELDS

MetricType = Literal["Pods", "External", "Object"]
TargetType = Literal["AverageValue", "Value"]
ScalingPolicyType = Literal["Pods", "Percent"]
SelectPolicy = Literal["Max", "Min", "Disabled"]

METRIC_TYPES: tuple[MetricType, ...] = ("Pods", "External", "Object")
TARGET_TYPES: tuple[TargetType, ...] = ("AverageValue", "Value")

MAX_WINDOW_S = 3600.0
"""Longest stabilizationWindowSeconds that the API server accepts."""
MAX_PERIOD_S = 1800.0
"""Longest periodSeconds of a scaling policy that the API server accepts."""


@dataclass(frozen=True)
class MetricSpec:
    """One entry of `spec.metrics`."""

    name: str
    """External and Object: a field of the Observation, the fleet-wide value, or a sum of several
    such as `running+queue_depth`. Pods: a field of each replica."""
    target: float
    """In the metric's own unit, > 0; rounded up to 1/1000, as every quantity is."""
    type: MetricType = "External"
    target_type: TargetType = "AverageValue"
    """AverageValue: `target` is per replica. Value: `target` is for the whole fleet."""

    def __post_init__(self) -> None:
        known = REPLICA_FIELDS if self.type == "Pods" else FIELD_NAMES
        for name in (self.name,) if self.type == "Pods" else self.fields:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
                raise ConfigError(f"hpa: '{name}' is no metric of type {self.type}; {hint}")
        if not (isfinite(self.target) and self.target > 0):
            raise ConfigError(
                f"hpa: the target of '{self.name}' is {self.target}; expected a number above 0"
            )
        if self.type == "Pods" and self.target_type != "AverageValue":
            raise ConfigError(
                f"hpa: a Pods metric has no target of type {self.target_type}; use AverageValue"
            )

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields whose sum is the metric."""
        return tuple(name.strip() for name in self.name.split("+"))


@dataclass(frozen=True)
class ScalingPolicy:
    """One entry of `behavior.scaleUp.policies` or `behavior.scaleDown.policies`."""

    type: ScalingPolicyType
    value: int
    """Replicas, or percent of the replicas at the start of the period; > 0."""
    period_s: float
    """Length of the period in which so much may change, (0, MAX_PERIOD_S] s."""

    def __post_init__(self) -> None:
        if self.value <= 0:
            raise ConfigError(f"hpa: a scaling policy's value is {self.value}; expected 1 or more")
        if not 0 < self.period_s <= MAX_PERIOD_S:
            raise ConfigError(
                f"hpa: a scaling policy's period is {self.period_s} s; expected above 0 and at "
                f"most {MAX_PERIOD_S:.0f} s"
            )


DEFAULT_UP_POLICIES = (ScalingPolicy("Pods", 4, 15.0), ScalingPolicy("Percent", 100, 15.0))
DEFAULT_DOWN_POLICIES = (ScalingPolicy("Percent", 100, 15.0),)


@dataclass(frozen=True)
class ScalingRules:
    """`behavior.scaleUp` or `behavior.scaleDown`; None takes the direction's default."""

    stabilization_window_s: float | None = None
    """[0, MAX_WINDOW_S] s. None: 0 s up, the cluster's downscale stabilization down."""
    policies: tuple[ScalingPolicy, ...] | None = None
    """At least one. None: up +4 replicas or +100 % in 15 s, down -100 % in 15 s."""
    select_policy: SelectPolicy = "Max"
    """Which policy counts: that of the largest change, of the smallest, or no change at all."""
    tolerance: float | None = None
    """Dead band of this direction, >= 0. None: the cluster's."""

    def __post_init__(self) -> None:
        window = self.stabilization_window_s
        if window is not None and not 0 <= window <= MAX_WINDOW_S:
            raise ConfigError(
                f"hpa: a stabilization window is {window} s; expected 0 to {MAX_WINDOW_S:.0f} s"
            )
        if self.policies is not None and not self.policies:
            raise ConfigError("hpa: a direction has no scaling policy; give one, or leave them out")
        if self.tolerance is not None and not self.tolerance >= 0:
            raise ConfigError(f"hpa: a tolerance is {self.tolerance}; expected 0 or more")


@dataclass(frozen=True)
class Behavior:
    """`spec.behavior`. An HPA that has none at all follows older rules: see HpaConfig."""

    scale_up: ScalingRules = field(default_factory=ScalingRules)
    scale_down: ScalingRules = field(default_factory=ScalingRules)


@dataclass(frozen=True)
class HpaConfig:
    """One HorizontalPodAutoscaler, and the flags of the controller that runs it."""

    metrics: tuple[MetricSpec, ...]
    """The largest of their proposals counts."""
    min_replicas: int | None = None
    """>= 1; None: the lower end of the knob's range, at least 1. Scale to zero needs a feature gate
    that is still off by default, so it is not offered."""
    max_replicas: int | None = None
    """None: the upper end of the knob's range."""
    behavior: Behavior | None = None
    """None, as in most manifests: the largest recommendation of the last
    `downscale_stabilization_s` counts in both directions, one step goes to at most max(2n, 4), and
    there are no rate limits."""
    tolerance: float = 0.1
    """Dead band around a ratio of 1, both ways (--horizontal-pod-autoscaler-tolerance)."""
    downscale_stabilization_s: float = 300.0
    """--horizontal-pod-autoscaler-downscale-stabilization."""
    sync_period_s: float = 15.0
    """Time between two calls, > 0 (--horizontal-pod-autoscaler-sync-period). It sizes the memory:
    calls that come faster shorten the windows, slower ones do no harm."""

    def __post_init__(self) -> None:
        if not self.metrics:
            raise ConfigError("hpa: no metric; give at least one to scale on")
        low, high = self.min_replicas, self.max_replicas
        if low is not None and low < 1:
            raise ConfigError(f"hpa: min_replicas is {low}; expected 1 or more")
        if low is not None and high is not None and low > high:
            raise ConfigError(f"hpa: min_replicas {low} is above max_replicas {high}")
        if high is not None and high < 1:
            raise ConfigError(f"hpa: max_replicas is {high}; expected 1 or more")
        if not self.tolerance >= 0:
            raise ConfigError(f"hpa: tolerance is {self.tolerance}; expected 0 or more")
        if not 0 <= self.downscale_stabilization_s <= MAX_WINDOW_S:
            raise ConfigError(
                f"hpa: downscale_stabilization_s is {self.downscale_stabilization_s}; expected 0 "
                f"to {MAX_WINDOW_S:.0f}"
            )
        if not (isfinite(self.sync_period_s) and self.sync_period_s > 0):
            raise ConfigError(
                f"hpa: the time between two ticks is {self.sync_period_s} s; expected above 0"
            )

    @property
    def up_window_s(self) -> float:
        """How far back a low recommendation holds a scale-up back, s; 0 without `behavior`."""
        if self.behavior is None:
            return 0.0
        return self.behavior.scale_up.stabilization_window_s or 0.0

    @property
    def down_window_s(self) -> float:
        """How far back a high recommendation holds a scale-down back, s."""
        window = None if self.behavior is None else self.behavior.scale_down.stabilization_window_s
        return self.downscale_stabilization_s if window is None else window

    @property
    def up_policies(self) -> tuple[ScalingPolicy, ...]:
        policies = None if self.behavior is None else self.behavior.scale_up.policies
        return DEFAULT_UP_POLICIES if policies is None else policies

    @property
    def down_policies(self) -> tuple[ScalingPolicy, ...]:
        policies = None if self.behavior is None else self.behavior.scale_down.policies
        return DEFAULT_DOWN_POLICIES if policies is None else policies

    @property
    def up_select(self) -> SelectPolicy:
        return "Max" if self.behavior is None else self.behavior.scale_up.select_policy

    @property
    def down_select(self) -> SelectPolicy:
        return "Max" if self.behavior is None else self.behavior.scale_down.select_policy

    @property
    def up_tolerance(self) -> float:
        tolerance = None if self.behavior is None else self.behavior.scale_up.tolerance
        return self.tolerance if tolerance is None else tolerance

    @property
    def down_tolerance(self) -> float:
        tolerance = None if self.behavior is None else self.behavior.scale_down.tolerance
        return self.tolerance if tolerance is None else tolerance
