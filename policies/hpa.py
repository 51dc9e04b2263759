"""HPA v2: the rule that Kubernetes runs, from one observation and what it remembers.

One sync of pkg/controller/podautoscaler/horizontal.go, Kubernetes 1.36.2 (`reconcileAutoscaler`):
bounds first, then metrics (`hpa_metrics`), then windows and rate limits (`hpa_behavior`). What the
user sets is in `hpa_spec`. Nothing in HPA knows that a replica starts cold.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from policies.entry import Entry, Load, Parameter, Target
from policies.hpa_behavior import Layout, normalize, proposed, remember, seed, settle
from policies.hpa_metrics import evaluate
from policies.hpa_spec import METRIC_TYPES, TARGET_TYPES, Behavior, HpaConfig, MetricSpec
from policies.hpa_words import HpaWords
from policies.options import Options
from policies.rule import RulePolicy, RuleResult
from tuner.core.knobs import KnobSpace
from tuner.core.observation import ObservationArrays
from tuner.core.protocols import FloatArray

DEFAULT_METRIC = "output_tokens_per_s"
"""The one signal that follows an LLM fleet's load closely and needs no engine gauge: what a request
costs is the tokens it generates, and requests differ in that by orders of magnitude."""
DEFAULT_TARGET = 1000.0
"""Output tokens/s per replica: about a third of what 8 H200 decode at 128 sequences. A place to
start from; `tuner compare` takes the target from a sweep."""


@dataclass(frozen=True)
class HpaRule:
    """HPA v2 over n targets.

    Where HPA writes nothing because it cannot tell (n not known, scaled to 0 by hand, broken
    metrics) the settings are NaN; where it decides to stay they are n.
    """

    config: HpaConfig

    @cached_property
    def layout(self) -> Layout:
        """Where what is in the memory."""
        return Layout.of(self.config)

    @property
    def memory_size(self) -> int:
        return self.layout.size

    def decide(self, now: ObservationArrays, memory: FloatArray) -> RuleResult:
        column = now.knobs.column("replicas")
        n = now.settings[:, column]
        low, high = self.bounds(now.knobs)
        memory = memory.copy()
        state = self.layout.views(memory)
        settle(self.config, state, n)
        seed(state, now.at_s, n)

        answer = evaluate(self.config, now, n)
        enabled = n > 0
        forced = enabled & ((n < low) | (n > high))
        decided = enabled & ~forced & ~np.isnan(answer.desired)
        raw = np.where(decided, answer.desired, np.nan)
        paced = normalize(self.config, state, now.at_s, n, raw, low, high)
        target = np.where(decided, paced.replicas, np.nan)
        target = np.where(forced, np.clip(n, low, high), target)
        remember(state, decided, now.at_s, raw)
        proposed(self.config, state, decided | forced, now.at_s, n, target)

        settings = np.full(now.settings.shape, np.nan)
        settings[:, column] = target
        words = HpaWords(self.config, n, low, high, answer, paced)
        return RuleResult(settings=settings, raw=raw, need=answer.need, memory=memory, why=words)

    def bounds(self, knobs: KnobSpace) -> tuple[float, float]:
        """Fewest and most replicas: as configured, else the knob's range, never 0."""
        spec = knobs["replicas"]
        low = max(spec.low, 1) if self.config.min_replicas is None else self.config.min_replicas
        high = spec.high if self.config.max_replicas is None else self.config.max_replicas
        return float(low), float(max(low, high))


def build(options: Options, target: Target) -> RulePolicy:
    """Policy `hpa` with one metric.

    Options: `metric`, `type`, `target_type` and `target`; `min_replicas`, `max_replicas`;
    `tolerance`; `downscale_stabilization_s`; `behavior` absent (default) or default.

    Raises:
        ConfigError: an option is unknown or does not fit.
    """
    metric = MetricSpec(
        name=options.text("metric", DEFAULT_METRIC),
        target=options.number("target", DEFAULT_TARGET),
        type=options.choice("type", METRIC_TYPES, "External"),
        target_type=options.choice("target_type", TARGET_TYPES, "AverageValue"),
    )
    spec = target.knobs["replicas"]
    low = options.inside("min_replicas", max(spec.low, 1), spec)
    high = options.inside("max_replicas", spec.high, spec)
    behavior = options.choice("behavior", ("absent", "default"), "absent")
    config = HpaConfig(
        metrics=(metric,),
        min_replicas=low,
        max_replicas=high,
        behavior=Behavior() if behavior == "default" else None,
        tolerance=options.number("tolerance", HpaConfig.tolerance),
        downscale_stabilization_s=options.number(
            "downscale_stabilization_s", HpaConfig.downscale_stabilization_s
        ),
        sync_period_s=target.tick_s,
    )
    options.finish()
    return RulePolicy("hpa", HpaRule(config))


def search(load: Load) -> tuple[Parameter, ...]:
    """The target of the default metric, and the two settings that people change beside it."""
    around = load.output_tokens_per_s
    return (
        Parameter("target", around / 2, 3 * around, "output tokens/s per replica", log=True),
        Parameter("tolerance", 0.0, 0.2, ""),
        Parameter("downscale_stabilization_s", 0.0, 1800.0, "s"),
    )


ENTRY = Entry(build, search, tick_s=15.0)
